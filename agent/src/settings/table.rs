//! The table of settings.

/// When another value of a setting, out of a NodeConfig, counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// At once.
    Live,
    /// At the daemon's next start: it changes the addressing mode, or what is set up once.
    AtStart,
    /// Never: it is needed before NodeConfigs can be read, or belongs to mounts, probes or rights of the daemon's pod.
    Given,
}

/// One setting.
pub struct Setting {
    /// Environment variable.
    pub name: &'static str,
    /// Flag, without the dashes.
    pub flag: &'static str,
    /// When a NodeConfig's value counts.
    pub applies: Applies,
    /// As it would be written.
    pub default: &'static str,
    /// One line.
    pub help: &'static str,
}

macro_rules! settings {
    ($($name:literal $applies:ident $flag:literal $default:literal $help:literal;)*) => {
        /// The table.
        pub const SETTINGS: &[Setting] =
            &[$(Setting { name: $name, flag: $flag, applies: Applies::$applies, default: $default, help: $help }),*];
    };
}

settings! {
    "WARM_ENI_TARGET" Live "warm-eni-target" "" "Whole ENIs' worth of addresses to keep available; with no target set, the daemon learns its own";
    "WARM_IP_TARGET" Live "warm-ip-target" "" "Addresses to keep available; switches WARM_ENI_TARGET and WARM_PREFIX_TARGET off";
    "MINIMUM_IP_TARGET" Live "minimum-ip-target" "" "Addresses to have at least, assigned or not; switches the same two off";
    "WARM_PREFIX_TARGET" Live "warm-prefix-target" "" "Idle /28s to keep, with ENABLE_PREFIX_DELEGATION";
    "ENABLE_IPv4" AtStart "ipv4" "true" "Pods get IPv4 addresses of the VPC";
    "ENABLE_IPv6" AtStart "ipv6" "false" "Pods get IPv6 addresses of the VPC, out of a /80 on each ENI; with ENABLE_IPv4 both";
    "ENABLE_V4_EGRESS" AtStart "v4-egress" "true" "With IPv6 alone: pods reach IPv4 destinations, as the node";
    "ENABLE_V6_EGRESS" AtStart "v6-egress" "false" "With IPv4 alone: pods reach IPv6 destinations, as the node, if it has an IPv6 address";
    "ENABLE_MULTI_NIC" AtStart "multi-nic" "false" "Use network cards above the first, and give pods that ask for it an interface on each";
    "ENABLE_SUBNET_DISCOVERY" AtStart "subnet-discovery" "true" "Create ENIs in any subnet of the node's zone that is tagged kubernetes.io/role/cni=1, and in the primary ENI's unless it is tagged 0";
    "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG" AtStart "custom-network" "false" "Create ENIs in the subnet, and with the security groups, of the node's ENIConfig; pods get no address of the primary ENI";
    "ENI_CONFIG_ANNOTATION_DEF" AtStart "eni-config-annotation" "k8s.amazonaws.com/eniConfig" "The node's annotation that names its ENIConfig";
    "ENI_CONFIG_LABEL_DEF" AtStart "eni-config-label" "k8s.amazonaws.com/eniConfig" "The node's label that names its ENIConfig, where the annotation is not there; without both it is the one named default";
    "ENABLE_PREFIX_DELEGATION" AtStart "prefix-delegation" "false" "Ask for /28s; single addresses where the type or the subnet has none";
    "MAX_ENI" Live "max-eni" "" "ENIs at most, below the instance type's own limit; 0 is no limit";
    "MAX_PODS" Live "max-pods" "" "Pods that fit on the node: the pool is never larger than that ahead of need";
    "IP_COOLDOWN_PERIOD" Live "ip-cooldown-period" "30" "Seconds that an address is in its cooldown after use";
    "MANAGE_UNTAGGED_ENI" AtStart "manage-untagged-eni" "true" "Adopt attached ENIs that carry no tag of ours";
    "DISABLE_NETWORK_RESOURCE_PROVISIONING" Live "disable-provisioning" "false" "Create, change and release nothing in EC2";
    "ENABLE_IMDS_ONLY_MODE" AtStart "imds-only" "false" "Do not ask EC2 at all; implies the previous one";
    "DISABLE_LEAKED_ENI_CLEANUP" Live "disable-leaked-eni-cleanup" "false" "Do not delete leaked ENIs of other nodes of the cluster";
    "AWS_MANAGE_ENIS_NON_SCHEDULABLE" Live "manage-cordoned" "false" "Keep a pool ahead on a cordoned node too";
    "CLUSTER_NAME" AtStart "cluster-name" "" "Tag on ENIs: which cluster they belong to; leaked ENIs are looked for only with it";
    "CLUSTER_ENDPOINT" Given "cluster-endpoint" "" "The API server's URL, if not that of the Service kubernetes: where kube-proxy is not there yet, or not at all";
    "ENID_STARTUP_TAINT" AtStart "startup-taint" "" "Key of a taint that new nodes have, and that the daemon takes off once pods can be served";
    "ENID_NO_ADDRESSES_TAINT" AtStart "no-addresses-taint" "false" "Taint the node (NoSchedule) while its subnets have no address for another pod";
    "ANNOTATE_POD_IP" AtStart "annotate-pod-ip" "false" "Annotate pods with their address (vpc.amazonaws.com/pod-ips), for network policy engines that read it there";
    "ENID_PUBLISH_ADDRESSES" AtStart "publish-addresses" "false" "Publish how many addresses the node's pods can have as its extended resource enid.dev/addresses, which pods may request";
    "ADDITIONAL_ENI_TAGS" AtStart "additional-eni-tags" "{}" "JSON object of further tags on new ENIs";
    "AWS_VPC_ENI_MTU" AtStart "eni-mtu" "9001" "MTU of ENIs, bytes, 576 to 9001";
    "POD_MTU" AtStart "pod-mtu" "" "MTU of pods, bytes, 576 to 9001; as the ENIs' if not set";
    "AWS_VPC_K8S_CNI_VETHPREFIX" AtStart "veth-prefix" "eni" "Prefix of the names of pods' host links, four characters at most";
    "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS" AtStart "exclude-snat-cidrs" "" "Comma list of IPv4 CIDRs that see the pod's own address";
    "AWS_VPC_K8S_CNI_EXTERNALSNAT" AtStart "external-snat" "false" "Leave pods' addresses as they are, whatever the destination: a gateway behind the ENIs translates";
    "AWS_VPC_K8S_CNI_RANDOMIZESNAT" AtStart "randomize-snat" "prng" "How source ports are chosen: prng, hashrandom or none";
    "AWS_EXTERNAL_SERVICE_CIDRS" AtStart "external-service-cidrs" "" "Comma list of IPv4 CIDRs that are routed by the main route table, not by an ENI's own";
    "AWS_VPC_CNI_NODE_PORT_SUPPORT" AtStart "node-port-support" "true" "Connections that came in by an ENI, such as NodePort, are answered by it too, whichever ENI the pod's address is on";
    "AWS_VPC_K8S_CNI_CONNMARK" AtStart "connmark" "0x80" "Bits of connection marks that remember what came in by the primary ENI";
    "ENID_ENI_MARK_MASK" AtStart "eni-mark-mask" "0x7f" "Seven bits side by side of packet marks that name an ENI";
    "ENID_TAKE_OVER" Given "take-over" "false" "Take over the pods that Amazon's VPC CNI has left on the node (docs/takeover.md); without it the daemon refuses to start beside them";
    "AWS_VPC_K8S_CNI_BACKING_STORE" Given "backing-store" "/var/run/aws-node/ipam.json" "The state file of Amazon's VPC CNI, which a take-over reads and `enid handback` writes; its daemon's socket is beside it";
    "ENID_HOST_LOCAL_DIR" Given "host-local-dir" "/run/cni" "The host's /run/cni, below which Amazon's egress-cni keeps (as files of host-local) which pod has which address";
    "MY_POD_NAME" Given "pod-name" "" "The name of the daemon's pod: a node that was given back (`enid handback`) is taken over again by another one only";
    "ENID_FORWARD_PROBE" Given "forward-probe" "true" "Where another firewall drops forwarded packets, send a test packet between two network namespaces, and give addresses only if it arrives";
    "AWS_VPC_K8S_CNI_LOGLEVEL" Live "log-level" "info" "error, warn, info, debug or trace";
    "ENID_LOG_FORMAT" Given "log-format" "text" "text or json";
    "AWS_EC2_ENDPOINT" Given "ec2-endpoint" "" "EC2's URL, if not the region's own";
    "MY_NODE_NAME" Given "node-name" "" "The node's name in Kubernetes; the host's name if not set";
    "ENID_RUN_DIR" Given "run-dir" "/run/enid" "Folder of the sockets";
    "ENID_STORE_DIR" Given "store-dir" "/var/lib/enid" "Folder of the store";
    "HOST_CNI_BIN_PATH" Given "cni-bin-dir" "/opt/cni/bin" "Folder the plugin is installed in";
    "HOST_CNI_CONFDIR_PATH" Given "cni-conf-dir" "/etc/cni/net.d" "Folder of the network configuration";
    "HOST_PROC_SYS_NET_PATH" Given "proc-sys-net-dir" "/proc/sys/net" "Folder the host's values of IPv6 and ip_forward are written in; in a container the host's /proc/sys/net is mounted there";
    "ENABLE_BANDWIDTH_PLUGIN" AtStart "bandwidth-plugin" "false" "Chain the bandwidth plugin, which shapes what pods' annotations ask for";
    "DISABLE_POD_V6" AtStart "disable-pod-v6" "false" "Chain the tuning plugin, which switches IPv6 off in pods";
    "ENID_CONFLIST_TEMPLATE" Given "conflist-template" "" "File with a network configuration to start from, instead of our own";
    "ENID_ADD_WAIT" AtStart "add-wait" "60" "Seconds an ADD waits for an address, 1 to 600: below the runtime's own limit";
    "ENID_START_WAIT" Given "start-wait" "30" "Seconds to wait for instance metadata at start";
    "ENID_METRICS_ADDRESS" Given "metrics-address" "0.0.0.0:61678" "Where /metrics is served";
    "ENID_HEALTH_ADDRESS" Given "health-address" "127.0.0.1:61680" "Where /healthz and /readyz are served, for the kubelet's probes: a loopback address";
    "ENID_DEBUG_ADDRESS" Given "debug-address" "" "Where enid.v1.Debug is served besides debug.sock: a loopback address, which every pod on the host's network can reach; not at all if not set";
    "ENID_ADMIN" AtStart "admin" "false" "Let root freeze releases or all that changes something at EC2, exclude ENIs, and have surplus released at once (`enid admin`), over debug.sock";
    "OTEL_EXPORTER_OTLP_ENDPOINT" AtStart "otlp-endpoint" "" "Where traces of ADDs, DELs and EC2 calls are sent (OTLP over gRPC), such as http://collector:4317; nowhere if not set";
    "INTROSPECTION_BIND_ADDRESS" Given "introspection-address" "127.0.0.1:61679" "Where the state is served as JSON under the paths of Amazon's daemon: a loopback address";
    "DISABLE_INTROSPECTION" AtStart "disable-introspection" "false" "Serve no introspection";
    "DISABLE_METRICS" AtStart "disable-metrics" "false" "Serve no metrics";
}
