// Command etcd is etcd's server: the module that holds its own main package names its parts by folders, so that it
// cannot be built from outside.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
