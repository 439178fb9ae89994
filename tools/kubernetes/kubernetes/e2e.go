//go:build tools

// Package tools holds the end-to-end tests in go.mod: they are a test, which no tool directive can name.
package tools

import _ "k8s.io/kubernetes/test/e2e"
