//! What a node has on its disk before it boots: certificates, and the configuration of containerd, kubelet and
//! kube-proxy.

use std::{fs, path::Path};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vpclab::Lab;

use crate::{
    config::{ClusterConfig, Cni},
    kubeconfig,
    parts::Parts,
    pki::{Pki, Use},
};

/// What process 1 of a node reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeFiles {
    /// The node's name.
    pub name: String,
    /// Where its programs are.
    pub programs: String,
    /// Programs that run all the time, with their arguments; containerd is the first.
    pub services: Vec<Vec<String>>,
    /// Archives of images that containerd gets at the first boot.
    pub images: Vec<String>,
    /// The standard plugins, for a CNI that does not bring its own.
    pub plugins: Option<String>,
}

/// Pods whose manifests are here run without the API server.
pub const STATIC_PODS: &str = "/var/lib/kubelet/manifests";
const CONTAINERD: &str = "/run/containerd/containerd.sock";
const CONTAINERD_CONFIG: &str = r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "localhost/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  # A container host may lack the right to lower an oom score, and AppArmor.
  restrict_oom_score_adj = true
  disable_apparmor = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  base_runtime_spec = "/run/container.json"
[plugins."io.containerd.cri.v1.runtime".cni]
  conf_dir = "/etc/cni/net.d"
  bin_dirs = ["/opt/cni/bin"]
"#;

impl NodeFiles {
    /// Writes everything below the node's folder, which is where the node finds it too.
    pub fn write(
        config: &ClusterConfig,
        lab: &Lab,
        index: usize,
        folder: &Path,
        server: &str,
        (pki, parts): (&Pki, &Parts),
    ) -> anyhow::Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let node = lab.node(index);
        let mut addresses = vec![node.address.clone()];
        addresses.extend(node.address_v6.clone());
        let (certificate, serving) = (format!("{}-client", node.name), format!("{}-server", node.name));
        let user = format!("system:node:{}", node.name);
        pki.issue(&certificate, Use::Client, &user, &["system:nodes"], &[])?;
        pki.issue(&serving, Use::Server, &user, &[], &addresses)?;
        let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
        kubeconfig::write(&folder.join("kubelet.kubeconfig"), server, pki, &certificate)?;
        kubeconfig::write(&folder.join("kube-proxy.kubeconfig"), server, pki, "kube-proxy")?;
        let node_ip = config.families.node_addresses(&node.address, node.address_v6.as_deref());
        let write = |name: &str, text: &str| {
            fs::write(folder.join(name), text).with_context(|| format!("cannot write {}", path(name)))
        };
        let provider = format!("aws:///us-east-1{}/{}", ["a", "b"][index % 2], node.instance_id);
        write("kubelet.yaml", &kubelet(config, pki, &serving, &provider).to_string())?;
        write("kube-proxy.yaml", &kube_proxy(config, index, &node.name, &path("kube-proxy.kubeconfig")).to_string())?;
        write("containerd.toml", CONTAINERD_CONFIG)?;
        let command = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<String>>();
        let mut services = vec![
            command(&["containerd", "-c", &path("containerd.toml")]),
            command(&[
                "kubelet",
                &format!("--config={}", path("kubelet.yaml")),
                &format!("--kubeconfig={}", path("kubelet.kubeconfig")),
                &format!("--hostname-override={}", node.name),
                &format!("--node-ip={node_ip}"),
                "--root-dir=/var/lib/kubelet",
            ]),
        ];
        if config.proxy(index) != "none" {
            services.push(command(&["kube-proxy", &format!("--config={}", path("kube-proxy.yaml"))]));
        }
        let images = parts.images()?.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        let files = NodeFiles {
            name: node.name.clone(),
            programs: parts.folder().to_string_lossy().into_owned(),
            services,
            images,
            // Others bring their own: nothing but what they install may be needed.
            plugins: (config.cni == Cni::None).then(|| parts.plugins().to_string_lossy().into_owned()),
        };
        write("node.json", &serde_json::to_string_pretty(&files).context("cannot write JSON")?)
    }

    /// Reads what [`NodeFiles::write`] left.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("node.json");
        let text = fs::read(&path).with_context(|| format!("there is no node in {}", folder.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not what kubelab writes", path.display()))
    }
}

fn kubelet(config: &ClusterConfig, pki: &Pki, serving: &str, provider: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": pki.path("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": pki.path(&format!("{serving}.crt")),
        "tlsPrivateKeyFile": pki.path(&format!("{serving}.key")),
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
        "providerID": provider,
        "maxPods": config.max_pods,
        "staticPodPath": STATIC_PODS,
        "clusterDomain": "cluster.local",
        "clusterDNS": [config.families.dns()],
        "resolvConf": "",
        "cgroupDriver": "cgroupfs",
        // From here on: what a container that is a machine lacks.
        "failCgroupV1": false,
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "oomScoreAdj": 0,
        "maxOpenFiles": 20000,
        // The disk is the machine's, which others fill: it is not ours to clean up, and no reason to end pods.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": { "memory.available": "100Mi" },
    })
}

fn kube_proxy(config: &ClusterConfig, index: usize, name: &str, kubeconfig: &str) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": { "kubeconfig": kubeconfig },
        "mode": config.proxy(index),
        // As EKS has it: pods' addresses are the VPC's, and are not told apart from other clients'.
        "clusterCIDR": "",
        "hostnameOverride": name,
        "oomScoreAdj": 0,
        // These values belong to the machine.
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
        "metricsBindAddress": "127.0.0.1:10249",
    })
}
