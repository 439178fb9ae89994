//! A real containerd on a node of the lab, driven as the kubelet drives it: by CRI, its gRPC API.

use std::{
    collections::HashMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use hyper_util::rt::TokioIo;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, ListPodSandboxRequest, PodSandboxConfig,
    PodSandboxMetadata, PodSandboxStatusRequest, PortMapping, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StatusRequest, StopPodSandboxRequest, VersionRequest,
    runtime_service_client::RuntimeServiceClient,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;
use vpclab::wait_until;

use crate::Place;

/// The image of a container that serves TCP on 8080.
pub const SERVER: &str = "localhost/server:1";
/// Its folder, as the node sees it.
const INSIDE: &str = "/run/cri";
const PAUSE: &str = "localhost/pause:1";
/// A CRI call makes links, namespaces and processes, fifty at once on a small machine.
const BOUND: Duration = Duration::from_secs(60);

/// Whose containerd.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Debian's, 1.6: it asks no STATUS.
    Debian,
    /// A current one, 2.2, which does (tools/kubernetes builds it).
    Current,
}

impl Release {
    /// Where its programs are, and what its configuration says.
    fn programs_and_config(self) -> (String, String) {
        let common =
            format!("root = \"{INSIDE}/root\"\nstate = \"/run/containerd\"\n[grpc]\n  address = \"{INSIDE}/sock\"\n");
        // The kernel of a container host may lack the right to lower an oom score, and AppArmor.
        let lacks =
            "  restrict_oom_score_adj = true\n  disable_apparmor = true\n  netns_mounts_under_state_dir = true\n";
        match self {
            Release::Debian => (
                "/usr/bin".to_owned(),
                format!(
                    "version = 2\ndisabled_plugins = [\"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.zfs\"]\n{common}\
                     [plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"{PAUSE}\"\n{lacks}  \
                     [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n    snapshotter = \"native\"\n"
                ),
            ),
            Release::Current => (
                concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/kubernetes").to_owned(),
                format!(
                    "version = 3\n{common}[plugins.\"io.containerd.cri.v1.images\"]\n  snapshotter = \"native\"\n\
                     [plugins.\"io.containerd.cri.v1.images\".pinned_images]\n  sandbox = \"{PAUSE}\"\n\
                     [plugins.\"io.containerd.cri.v1.runtime\"]\n{lacks}\
                     [plugins.\"io.containerd.cri.v1.runtime\".cni]\n  conf_dir = \"/etc/cni/net.d\"\n  bin_dirs = [\"/opt/cni/bin\"]\n"
                ),
            ),
        }
    }
}

/// A containerd. Dropping it ends it with all its pods.
pub struct Runtime {
    child: Child,
    folder: PathBuf,
    tokio: tokio::runtime::Runtime,
    client: RuntimeServiceClient<Channel>,
}

impl Runtime {
    /// Starts one on the node, with its standard plugins after ours in the chain, and with images that are built here.
    pub fn start(place: Place<'_>, release: Release) -> anyhow::Result<Self> {
        // All of it is in the node's own memory, and is gone with the node.
        let pid = place.lab.state().pid_of(place.name)?;
        let folder = PathBuf::from(format!("/proc/{pid}/root{INSIDE}"));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let socket = folder.join("sock");
        let (programs, config) = release.programs_and_config();
        fs::write(folder.join("config.toml"), config).context("cannot write containerd's configuration")?;
        let log = File::create(folder.join("log")).context("cannot write containerd's log")?;
        let child = place
            .command("env")?
            .arg(format!("PATH={programs}:/usr/sbin:/usr/bin:/sbin:/bin"))
            .args(["containerd", "-c"])
            .arg(format!("{INSIDE}/config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start containerd (tools/packages installs it)")?;
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let channel = {
            let _entered = tokio.enter();
            let path = socket.clone();
            Endpoint::from_static("http://cri.local").connect_with_connector_lazy(service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
        };
        let runtime = Runtime { child, folder, tokio, client: RuntimeServiceClient::new(channel) };
        wait_until(BOUND, || runtime.version().is_ok())
            .with_context(|| format!("containerd does not start: {}", runtime.log()))?;
        for (image, source) in [(PAUSE, "pause"), (SERVER, "server")] {
            runtime.import(place, image, source)?;
        }
        Ok(runtime)
    }

    fn version(&self) -> anyhow::Result<String> {
        let mut client = self.client.clone();
        let answer = self.tokio.block_on(client.version(VersionRequest::default()))?;
        Ok(answer.into_inner().runtime_version)
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn import(&self, place: Place<'_>, image: &str, source: &str) -> anyhow::Result<()> {
        let sources = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/runtime"));
        let (root, tar) = (self.folder.join(source), self.folder.join(format!("{source}.tar")));
        let run = |command: &mut Command| -> anyhow::Result<()> {
            let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
            ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        };
        fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        let c = sources.join(format!("{source}.c"));
        run(Command::new("gcc").args(["-Os", "-static", "-w", "-o"]).arg(root.join("main")).arg(c))?;
        let make = concat!(env!("CARGO_MANIFEST_DIR"), "/../tools/oci-image");
        run(Command::new(make).arg(&tar).arg(&root).args([image, "--", "/main"]))?;
        let (socket, inside) = (format!("{INSIDE}/sock"), format!("{INSIDE}/{source}.tar"));
        run(place
            .command("ctr")?
            .arg("-a")
            .arg(socket)
            .args(["-n", "k8s.io", "image", "import", "--snapshotter", "native"])
            .arg(inside))
    }

    /// A pod with this name; ports of the node may lead to ports of the pod. Its sandbox's id.
    pub fn run_pod(&self, name: &str, ports: &[(i32, i32)]) -> anyhow::Result<String> {
        let request = RunPodSandboxRequest { config: Some(pod(name, ports)), runtime_handler: String::new() };
        let mut client = self.client.clone();
        let answer =
            self.tokio.block_on(async { tokio::time::timeout(BOUND, client.run_pod_sandbox(request)).await })?;
        Ok(answer.with_context(|| format!("the sandbox of {name} is refused"))?.into_inner().pod_sandbox_id)
    }

    /// The server in that pod.
    pub fn serve(&self, sandbox: &str, name: &str) -> anyhow::Result<()> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "server".to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: SERVER.to_owned(), ..ImageSpec::default() }),
            ..ContainerConfig::default()
        };
        let create = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(pod(name, &[])),
        };
        let mut client = self.client.clone();
        self.tokio.block_on(async {
            let container_id = client.create_container(create).await?.into_inner().container_id;
            client.start_container(StartContainerRequest { container_id }).await
        })?;
        Ok(())
    }

    /// The address that the runtime reports to the kubelet.
    pub fn address(&self, sandbox: &str) -> anyhow::Result<String> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: false };
        let mut client = self.client.clone();
        let status = self.tokio.block_on(client.pod_sandbox_status(request))?.into_inner().status;
        let network = status.and_then(|status| status.network).context("the runtime reports no address")?;
        Ok(network.ip)
    }

    /// Stops and removes it.
    pub fn remove(&self, sandbox: &str) -> anyhow::Result<()> {
        let mut client = self.client.clone();
        let id = || sandbox.to_owned();
        self.tokio.block_on(async {
            client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id() }).await?;
            client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id() }).await
        })?;
        Ok(())
    }

    /// What it tells the kubelet of the network: whether it is ready, and why not.
    pub fn network(&self) -> anyhow::Result<(bool, String)> {
        let mut client = self.client.clone();
        let answer = self.tokio.block_on(client.status(StatusRequest { verbose: false }))?.into_inner();
        let conditions = answer.status.context("the runtime has no status")?.conditions;
        let network = conditions.into_iter().find(|condition| condition.r#type == "NetworkReady");
        let network = network.context("the runtime says nothing of the network")?;
        Ok((network.status, network.message))
    }

    /// How many sandboxes it has.
    pub fn sandboxes(&self) -> anyhow::Result<usize> {
        let mut client = self.client.clone();
        let list = self.tokio.block_on(client.list_pod_sandbox(ListPodSandboxRequest::default()))?;
        Ok(list.into_inner().items.len())
    }
}

fn pod(name: &str, ports: &[(i32, i32)]) -> PodSandboxConfig {
    let port =
        |&(host_port, container_port): &(i32, i32)| PortMapping { host_port, container_port, ..PortMapping::default() };
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        port_mappings: ports.iter().map(port).collect(),
        labels: HashMap::new(),
        ..PodSandboxConfig::default()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Its shims run on without it: pods are removed first, and what remains ends with the node.
        let mut client = self.client.clone();
        let list = self.tokio.block_on(client.list_pod_sandbox(ListPodSandboxRequest::default()));
        for item in list.map(|list| list.into_inner().items).unwrap_or_default() {
            let _ = self.remove(&item.id);
        }
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.child.id())).unwrap_or_default();
        for pid in children.split_whitespace() {
            let _ = Command::new("kill").arg(pid).status();
        }
        let _ = self.child.wait();
    }
}
