# The verbs of this project; CI calls the same ones. `make` lists them.
SHELL := /bin/bash
TARGET := $(or $(CARGO_TARGET_DIR),target)
SHIM := x86_64-unknown-linux-musl

.PHONY: help tools cluster-tools build plugin check test test-vm sim demo bench audit chart borders structure image cluster-parts cluster cluster-down test-cluster conformance bench-cluster

help:
	@echo "make demo    two nodes, forty pods, every path a packet can take (KEEP=1 leaves it up)"
	@echo "make test    everything that tests"
	@echo "make test-cluster  Enid on a real Kubernetes cluster;  make conformance  Kubernetes' own network tests"
	@echo "make test-vm pods on nodes where kube-proxy uses IPVS, under Debian's own kernel in an emulated machine"
	@echo "make check   format, lints, licences, dependencies of crates, structure, chart"
	@echo "make cluster a real Kubernetes cluster on this machine with Enid installed (ARGS=\"--cni none\"; make cluster-down)"
	@echo "make image   Enid's image, without Docker and without a registry"
	@echo "make sim     random histories of a simulated node, with every fault (SEEDS=500)"
	@echo "make bench   ADD and DEL compared with a minimal program; sizes (SHORT=1: fewer rounds, for development)"
	@echo "make audit   known vulnerabilities (needs the advisory database, from outside)"
	@echo "make build   the programs;  make tools   what a fresh Debian 12 lacks;  make cluster-tools   a cluster's parts"

tools:
	tools/packages
	tools/rust-target $(SHIM)
	localstack/install
	tools/cargo-deny
	tools/helm
	tools/grpcurl
	tools/cnitool
	tools/plugins

# What a cluster is made of; `make cluster` and `make test-cluster` build it, too.
cluster-tools:
	tools/kubernetes/build containerd kubernetes etcd coredns

# One profile for the daemon everywhere; the plugin as it ships, small and static.
PLUGIN_BYTES := 1048576
build: plugin
	cargo build --locked --workspace

plugin:
	tools/rust-target $(SHIM)
	RUSTFLAGS="-C relocation-model=static -C force-unwind-tables=no" $(SHIPS) cargo build --locked --profile shim --target $(SHIM) -p enid-cni
	@size=$$(stat -c %s $(TARGET)/$(SHIM)/shim/enid-cni); \
	if [ "$$size" -ge $(PLUGIN_BYTES) ]; then echo "enid-cni has $$size bytes; less than $(PLUGIN_BYTES) are allowed"; exit 1; fi

# Lints while it builds: so the dependencies, the AWS SDK above all, are compiled once for lints and tests. `cargo clippy` would
# compile them in a way of its own. What is built so has a folder of its own; where everything is (CI), it is what tests run.
LINT := $(if $(RUSTC_WORKSPACE_WRAPPER),,CARGO_BUILD_BUILD_DIR=$(TARGET) CARGO_TARGET_DIR=$(TARGET)/lint RUSTC_WORKSPACE_WRAPPER=$(abspath tools/lint))
# What ships is compiled by the compiler itself.
SHIPS := env -u RUSTC_WORKSPACE_WRAPPER

check: tools/cargo-deny borders structure chart
	cargo fmt --all --check
	$(LINT) cargo build --locked --workspace --all-targets
	$(LINT) cargo build --locked --workspace --test cluster --test hung --test long # all targets are without these
	@! echo 'pub fn f(x: u8) -> u8 { return x; }' | tools/lint rustc --crate-type lib --emit metadata --out-dir $(TARGET)/lint -W clippy::needless_return - 2>/dev/null || { echo "tools/lint takes what clippy warns of"; exit 1; }
	.tools/bin/cargo-deny --log-level error check bans licenses sources

# The core has no I/O and no runtime in its tree; the plugin has no runtime and few crates; plugin and datapath have no
# AWS.
PLUGIN_CRATES := 65
borders:
	@tree=$$(cargo tree --locked -p enid-ipamd -e normal --prefix none) || exit 1; \
	if grep -E '^(tokio|aws-|kube|netlink-|nix|tonic)' <<<"$$tree"; then echo "ipamd pulls in I/O (above)"; exit 1; fi
	@tree=$$(cargo tree --locked -p enid-cni -p enid-datapath -p enid-api -p vpclab -e normal --prefix none) || exit 1; \
	if grep -E '^aws-' <<<"$$tree"; then echo "the AWS SDK outside the agent (above)"; exit 1; fi
	@tree=$$(cargo tree --locked -p enid-cni -e normal --prefix none | sort -u) || exit 1; \
	if grep -E '^(tokio|hyper|h2|tonic|tower)[- ]' <<<"$$tree"; then echo "the plugin pulls in a runtime (above)"; exit 1; fi; \
	count=$$(sed 's/ (.*//' <<<"$$tree" | sort -u | wc -l); \
	if [ "$$count" -gt $(PLUGIN_CRATES) ]; then echo "the plugin has $$count crates; $(PLUGIN_CRATES) are allowed"; exit 1; fi; \
	echo "borders: ipamd is pure, AWS stays in the agent, the plugin has $$count crates and no runtime"

# No circle of imports, state with one owner; the check itself is tested first.
structure:
	tools/structure --test
	tools/structure

chart:
	tools/helm
	tools/chart

test: root build
	tools/packages
	localstack/install
	tools/grpcurl
	tools/cnitool
	tools/plugins
	tools/kubernetes/build containerd
	tools/test

# The image as it ships.
image: plugin
	tools/packages
	tools/plugins
	$(SHIPS) cargo build --locked --release -p enid-agent
	tools/image --release

cluster-parts: root build
	tools/packages
	tools/helm
	tools/plugins
	tools/kubernetes/build containerd etcd kubernetes coredns
	tools/kubernetes/images
	tools/image

cluster: cluster-parts
	$(TARGET)/debug/kubelab up $(ARGS)

test-cluster: cluster-parts
	tools/test-cluster

# Of the conformance tests many want IPv4. These know IPv6, and send packets.
OF_IPV6 := '\[sig-network\] (Networking Granular|Services should (be able to create a functioning NodePort|serve multiport|serve endpoints|serve a basic|have session affinity)|DNS should provide DNS for|EndpointSlice should|HostPort|Proxy version)'
conformance: cluster-parts
	tools/kubernetes/build e2e
	tools/conformance
	tools/conformance --localstack
	FOCUS='\[sig-network\].*\[(Feature:IPv6DualStack|Conformance)\]' SKIP='\[Disruptive\]|\[Serial\]|\[Feature:SCTP' tools/conformance --families dual
	FOCUS=$(OF_IPV6) SKIP='\[Disruptive\]|\[Serial\]|\[Feature:|\[Slow\]|sctp' tools/conformance --families ipv6

cluster-down:
	$(TARGET)/debug/kubelab down $(ARGS)

# The kernel here may lack IPVS, VLANs, VRF, ipvlan, netem: Debian's own has them, in a machine of its own.
test-vm: root
	tools/packages
	@$(MAKE) --no-print-directory build
	tools/vm sh -c "modprobe -a ip_vs ip_vs_rr dummy 8021q vrf ipvlan sch_netem && ENID_PROXY=ipvs $$(tools/test-program coexistence) --nocapture"

sim:
	cargo build --locked --workspace
	$(TARGET)/debug/enid-sim

demo: root
	tools/packages
	localstack/install
	@$(MAKE) --no-print-directory build
	$(TARGET)/debug/demo

bench: root build
	localstack/install
	tools/packages
	musl-gcc -O2 -static -Wall -idirafter /usr/include -idirafter /usr/include/$$(uname -m)-linux-gnu -o $(TARGET)/floor-musl tests/bench/floor.c
	gcc -O2 -static -Wall -o $(TARGET)/floor-glibc tests/bench/floor.c
	$(SHIPS) cargo build --locked --release -p enid-agent
	ENID_BIN=$(abspath $(TARGET))/release/enid $(TARGET)/debug/bench $(if $(SHORT),--short) $(abspath $(TARGET))/floor-musl $(abspath $(TARGET))/floor-glibc
	ENID_BIN=$(abspath $(TARGET))/release/enid $(TARGET)/debug/scale $(abspath $(TARGET))/scale.svg

# On clusters of their own: beside the standard bridge plugin, with and without what the API server knows, beside many others.
bench-cluster: cluster-parts
	$(SHIPS) cargo build --locked --release -p enid-agent
	tools/image --release
	$(TARGET)/debug/cluster-bench $(or $(ROUNDS),3)
	$(TARGET)/debug/fill-bench $(or $(ROUNDS),3)
	$(TARGET)/debug/watch-bench

audit:
	.tools/bin/cargo-deny check advisories

.PHONY: root tools/cargo-deny
root:
	@[ "$$(id -u)" = 0 ] || { echo "namespaces need root: sudo make $(MAKECMDGOALS)"; exit 1; }

tools/cargo-deny:
	@tools/cargo-deny
