//! A real API server with its etcd, and nothing else of a cluster: on this machine's loopback, and reached from a node of a lab by a
//! door there.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};
use enid_datapath::{Error, netns::Netns};
use kubelab::{Parts, Pki, Use, kubeconfig};
use serde_json::{Value, json};

use crate::{Place, wait_until};

/// Both programs serve within this.
const BOUND: Duration = Duration::from_secs(60);
/// Where the door of a node is.
const DOOR: u16 = 6443;

/// The programs. They end when this is dropped.
pub struct ApiServer {
    folder: PathBuf,
    kubectl: PathBuf,
    running: Vec<Child>,
    port: u16,
}

impl ApiServer {
    /// Starts them, with Enid's definitions.
    pub fn start() -> anyhow::Result<Self> {
        let parts = Parts::find()?;
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("enid-api-server-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let pki = Pki::create(&folder.join("pki"))?;
        pki.issue("apiserver", Use::Server, "kube-apiserver", &[], &["127.0.0.1".to_owned()])?;
        pki.issue("admin", Use::Client, "admin", &["system:masters"], &[])?;
        let [client, peer, port] = free_ports()?;
        let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let etcd = [
            ("data-dir", folder.join("etcd").to_string_lossy().into_owned()),
            ("listen-client-urls", client.clone()),
            ("advertise-client-urls", client.clone()),
            ("listen-peer-urls", peer.clone()),
            ("initial-advertise-peer-urls", peer.clone()),
            ("initial-cluster", format!("default={peer}")),
            ("unsafe-no-fsync", "true".to_owned()),
        ];
        let server = [
            ("etcd-servers", client),
            ("bind-address", "127.0.0.1".to_owned()),
            ("advertise-address", "127.0.0.1".to_owned()),
            ("endpoint-reconciler-type", "none".to_owned()),
            ("secure-port", port.to_string()),
            ("tls-cert-file", pki.path("apiserver.crt")),
            ("tls-private-key-file", pki.path("apiserver.key")),
            ("client-ca-file", pki.path("ca.crt")),
            ("authorization-mode", "AlwaysAllow".to_owned()),
            // Pods here have no accounts.
            ("disable-admission-plugins", "ServiceAccount".to_owned()),
            ("service-cluster-ip-range", "10.96.0.0/24".to_owned()),
            ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
            ("service-account-key-file", pki.path("service-accounts.pub")),
            ("service-account-signing-key-file", pki.path("service-accounts.key")),
        ];
        let admin = folder.join("admin.kubeconfig");
        kubeconfig::write(&admin, &format!("https://127.0.0.1:{port}"), &pki, "admin")?;
        kubeconfig::write(&folder.join("node.kubeconfig"), &format!("https://127.0.0.1:{DOOR}"), &pki, "admin")?;
        let mut api = ApiServer { folder, kubectl: parts.program("kubectl"), running: Vec::new(), port };
        api.spawn(&parts.program("etcd"), &etcd)?;
        api.spawn(&parts.program("kube-apiserver"), &server)?;
        let is_ready =
            || api.kubectl(&["get", "--raw=/readyz"]).is_ok() && api.kubectl(&["get", "ns", "default"]).is_ok();
        wait_until(BOUND, is_ready)
            .with_context(|| format!("the API server is not ready; logs are in {}", api.folder.display()))?;
        let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/enid/crds");
        api.kubectl(&["apply", "--server-side", "-f", &crds.to_string_lossy()])?;
        api.kubectl(&["wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"])?;
        Ok(api)
    }

    /// What kubectl says, as who may do everything.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.run(arguments, "")
    }

    /// Makes an object.
    pub fn create(&self, object: &Value) -> anyhow::Result<()> {
        self.run(&["create", "-f", "-"], &object.to_string()).map(drop)
    }

    /// One object, as it is.
    pub fn get(&self, kind: &str, name: &str) -> anyhow::Result<Value> {
        let text = self.kubectl(&["get", kind, name, "-o", "json"])?;
        serde_json::from_str(&text).context("it is no JSON")
    }

    /// A node of this name; nobody looks after it.
    pub fn create_node(&self, name: &str) -> anyhow::Result<()> {
        self.create(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } }))
    }

    /// A pod that is bound to a node.
    pub fn create_pod(&self, name: &str, node: &str) -> anyhow::Result<()> {
        let containers = json!([{ "name": "c", "image": "none" }]);
        let spec = json!({ "nodeName": node, "containers": containers, "tolerations": [{ "operator": "Exists" }] });
        let metadata = json!({ "name": name, "namespace": "default" });
        self.create(&json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec }))
    }

    /// Events that are told of an object.
    pub fn events_of(&self, kind: &str, name: &str) -> anyhow::Result<Vec<Value>> {
        let selector = format!("involvedObject.kind={kind},involvedObject.name={name}");
        let text = self.kubectl(&["get", "events", "-A", "--field-selector", &selector, "-o", "json"])?;
        let list: Value = serde_json::from_str(&text).context("it is no JSON")?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// What a program on a node reads to reach it by that node's door.
    pub fn kubeconfig_of_nodes(&self) -> String {
        self.folder.join("node.kubeconfig").to_string_lossy().into_owned()
    }

    /// Opens a door on a node.
    pub fn door(&self, place: Place<'_>) -> anyhow::Result<Door> {
        let pid = place.lab.state().pid_of(place.name)?;
        let netns = Netns::open(Path::new(&format!("/proc/{pid}/ns/net"))).context("the node has no namespace")?;
        let failed = |source: io::Error| Error::new("listen on the node", source);
        let listener = netns.within(|| TcpListener::bind((Ipv4Addr::LOCALHOST, DOOR)).map_err(failed))?;
        let door = Door(Arc::new(Passage { is_open: AtomicBool::new(true), passing: Mutex::new(Vec::new()) }));
        let (passage, to) = (door.0.clone(), SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)));
        thread::spawn(move || listener.incoming().flatten().for_each(|from| passage.take(&from, to)));
        Ok(door)
    }

    fn run(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let mut child = Command::new(&self.kubectl)
            .arg("--kubeconfig")
            .arg(self.folder.join("admin.kubeconfig"))
            .arg("--request-timeout=10s")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run kubectl")?;
        io::Write::write_all(&mut child.stdin.take().context("kubectl has no input")?, input.as_bytes())?;
        let output = child.wait_with_output().context("cannot wait for kubectl")?;
        ensure!(output.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn spawn(&mut self, program: &Path, flags: &[(&str, String)]) -> anyhow::Result<()> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = File::create(self.folder.join(format!("{name}.log"))).context("cannot write a log")?;
        let child = Command::new(program)
            .args(flags.iter().map(|(flag, value)| format!("--{flag}={value}")))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share a log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        self.running.push(child);
        Ok(())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for child in self.running.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A way from a node to the API server, which can be shut.
pub struct Door(Arc<Passage>);

struct Passage {
    is_open: AtomicBool,
    passing: Mutex<Vec<TcpStream>>,
}

impl Door {
    /// Nobody passes any more, and who is passing is cut off.
    pub fn shut(&self) {
        self.0.is_open.store(false, Ordering::Relaxed);
        let mut passing = self.0.passing.lock().unwrap_or_else(PoisonError::into_inner);
        passing.drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }

    /// As before.
    pub fn open(&self) {
        self.0.is_open.store(true, Ordering::Relaxed);
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.shut();
    }
}

impl Passage {
    fn take(&self, from: &TcpStream, to: SocketAddr) {
        if !self.is_open.load(Ordering::Relaxed) {
            return;
        }
        let Ok(there) = TcpStream::connect(to) else { return };
        for (mut one, mut other) in [(from.try_clone(), there.try_clone()), (there.try_clone(), from.try_clone())]
            .into_iter()
            .filter_map(|(one, other)| Some((one.ok()?, other.ok()?)))
        {
            if let Ok(kept) = one.try_clone() {
                let mut passing = self.passing.lock().unwrap_or_else(PoisonError::into_inner);
                // Whoever shuts the door cuts off who is in the list.
                if !self.is_open.load(Ordering::Relaxed) {
                    return;
                }
                passing.push(kept);
            }
            thread::spawn(move || {
                let _ = io::copy(&mut one, &mut other);
                let _ = other.shutdown(Shutdown::Both);
            });
        }
    }
}

/// Ports of loopback that nobody has at this moment.
fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    let listeners: Vec<TcpListener> = (0..N)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<io::Result<_>>()
        .context("no port is free")?;
    let ports = listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<io::Result<Vec<u16>>>()?;
    ports.try_into().map_err(|_| anyhow::anyhow!("too few ports"))
}
