//! etcd, API server, controller manager, scheduler: on an instance of their own in the VPC.

use std::{
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use vpclab::{CONTROL_PLANE, Lab, wait_until};

use crate::{
    config::{ClusterConfig, Cni},
    families::Families,
    kubeconfig,
    parts::Parts,
    pki::{Pki, Use},
};

/// 3 s on an idle machine.
const BOUND: Duration = Duration::from_secs(90);
/// Where nodes and pods find the API server.
const PORT: u16 = 6443;
/// The client port of etcd, which only the API server uses.
const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEER: &str = "http://127.0.0.1:2380";
/// Ranges of pods where the bridge plugin gives addresses.
const BRIDGE_PODS: &str = "10.244.0.0/16";

const API_SERVER: &str = "kube-apiserver";
/// What pods ask of the API server is written down, not what they hear.
const AUDIT: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [ResponseStarted]
rules:
  - { level: None, users: [system:apiserver] }
  - { level: Metadata, userGroups: ['system:serviceaccounts'] }
  - { level: None }
";
/// What ends at once where the API server, or the roles that it makes at its first start, are not there.
const CLIENTS: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];

/// The control plane, as it is told to be.
pub struct ControlPlane<'a> {
    /// The lab whose instance it runs on.
    pub lab: &'a Lab,
    /// What the cluster should have.
    pub config: &'a ClusterConfig,
    /// The cluster's folder.
    pub folder: &'a Path,
    /// Its programs.
    pub parts: &'a Parts,
}

impl ControlPlane<'_> {
    /// The API server's URL.
    pub fn server(&self) -> anyhow::Result<String> {
        Ok(format!("https://{}", SocketAddr::new(self.address()?, PORT)))
    }

    /// Of the family of the cluster's Services.
    fn address(&self) -> anyhow::Result<IpAddr> {
        let instance =
            self.lab.state().control_plane.as_ref().context("the lab has no instance for a control plane")?;
        let v6 = instance.address_v6.as_ref().filter(|_| self.config.families == Families::Ipv6);
        v6.unwrap_or(&instance.address).parse().context("the control plane's address")
    }

    /// Certificates and kubeconfigs for all of it, and for people: `admin.kubeconfig`.
    pub fn credentials(&self) -> anyhow::Result<Pki> {
        let pki = Pki::create(&self.folder.join("pki"))?;
        let mut names = vec!["127.0.0.1".to_owned(), self.address()?.to_string(), "localhost".to_owned()];
        names.extend(self.config.families.api_services());
        names.extend(
            ["", ".default", ".default.svc", ".default.svc.cluster.local"].map(|end| format!("kubernetes{end}")),
        );
        pki.issue("apiserver", Use::Server, "kube-apiserver", &[], &names)?;
        pki.issue("apiserver-kubelet", Use::Client, "apiserver-kubelet", &["system:masters"], &[])?;
        pki.issue("front-proxy", Use::Client, "front-proxy", &[], &[])?;
        pki.issue("admin", Use::Client, "admin", &["system:masters"], &[])?;
        for name in ["kube-controller-manager", "kube-scheduler", "kube-proxy"] {
            pki.issue(name, Use::Client, &format!("system:{name}"), &[], &[])?;
        }
        for name in ["admin", "kube-controller-manager", "kube-scheduler", "kube-proxy"] {
            kubeconfig::write(&self.folder.join(format!("{name}.kubeconfig")), &self.server()?, &pki, name)?;
        }
        Ok(pki)
    }

    /// Starts all of it and waits until the API server is ready.
    pub fn start(&self) -> anyhow::Result<()> {
        let audit = self.folder.join("audit.yaml");
        fs::write(&audit, AUDIT).with_context(|| format!("cannot write {}", audit.display()))?;
        self.spawn("etcd")?;
        self.start_api_server()?;
        for name in CLIENTS {
            self.spawn(name)?;
        }
        Ok(())
    }

    /// Starts the API server and waits until it is ready.
    pub fn start_api_server(&self) -> anyhow::Result<()> {
        self.spawn(API_SERVER)?;
        let kubeconfig = self.folder.join("admin.kubeconfig");
        let kubectl = self.parts.program("kubectl");
        let (kubectl, kubeconfig) = (kubectl.to_string_lossy(), kubeconfig.to_string_lossy());
        let pid_file = self.pid_file(API_SERVER);
        let ready = || {
            // It ends where etcd is slow to answer; an init system would start it again.
            let has_ended = "test -s $0 && ! kill -0 $(cat $0) 2>/dev/null";
            if self.lab.run(CONTROL_PLANE, "sh", &["-c", has_ended, &pid_file]).is_ok() {
                self.spawn(API_SERVER)?;
            }
            let arguments = ["--kubeconfig", &kubeconfig, "--request-timeout=5s", "get", "--raw=/readyz"];
            self.lab.run(CONTROL_PLANE, &kubectl, &arguments)
        };
        if wait_until(BOUND, || ready().is_ok()).is_err() {
            let logs = self.folder.join("log");
            bail!("the API server is not ready within {} s; logs are in {}", BOUND.as_secs(), logs.display());
        }
        Ok(())
    }

    /// Ends the API server, as its machine's failure does; etcd keeps what it knew.
    pub fn stop_api_server(&self) -> anyhow::Result<()> {
        let file = self.pid_file(API_SERVER);
        let line = "pid=$(cat $0); kill -9 $pid; while kill -0 $pid 2>/dev/null; do sleep 0.1; done";
        self.lab.run(CONTROL_PLANE, "timeout", &["30", "sh", "-c", line, &file]).map(drop)
    }

    /// Number of a program's process, as the control plane's machine counts.
    fn pid_file(&self, name: &str) -> String {
        self.folder.join(format!("{name}.pid")).to_string_lossy().into_owned()
    }

    fn spawn(&self, name: &str) -> anyhow::Result<()> {
        // The number of one that has ended is not its successor's.
        let _ = fs::remove_file(self.pid_file(name));
        let path = log(self.folder, name);
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("cannot write {}", path.display()))?;
        // In a session of its own: it goes on when whoever started the cluster ends, and ends with the lab.
        self.lab
            .command(CONTROL_PLANE, "setsid")?
            .args(["sh", "-c", "echo $$ > $0; exec \"$@\"", &self.pid_file(name)])
            .arg(self.parts.program(name))
            .args(self.arguments(name)?)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share a log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(())
    }

    fn arguments(&self, name: &str) -> anyhow::Result<Vec<String>> {
        let file = |name: &str| self.folder.join(name).to_string_lossy().into_owned();
        let pki = |name: &str| file(&format!("pki/{name}"));
        let services = self.config.families.service_ranges();
        let conf = |name: &str| file(&format!("{name}.kubeconfig"));
        let client = |name: &str| {
            ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"]
                .map(|flag| format!("--{flag}={}", conf(name)))
                .into_iter()
                .chain(["--bind-address=127.0.0.1".to_owned(), "--leader-elect=false".to_owned()])
                .collect::<Vec<_>>()
        };
        let flags =
            |list: &[(&str, &str)]| list.iter().map(|(flag, value)| format!("--{flag}={value}")).collect::<Vec<_>>();
        Ok(match name {
            "etcd" => flags(&[
                ("data-dir", &file("etcd")),
                ("listen-client-urls", ETCD),
                ("advertise-client-urls", ETCD),
                ("listen-peer-urls", ETCD_PEER),
                ("initial-advertise-peer-urls", ETCD_PEER),
                ("initial-cluster", &format!("default={ETCD_PEER}")),
                // Nobody keeps a lab's data over a crash of the machine.
                ("unsafe-no-fsync", "true"),
            ]),
            API_SERVER => flags(&[
                ("audit-policy-file", &file("audit.yaml")),
                ("audit-log-path", &file("log/audit.log")),
                ("etcd-servers", ETCD),
                ("bind-address", &self.address()?.to_string()),
                ("advertise-address", &self.address()?.to_string()),
                ("secure-port", &PORT.to_string()),
                ("tls-cert-file", &pki("apiserver.crt")),
                ("tls-private-key-file", &pki("apiserver.key")),
                ("client-ca-file", &pki("ca.crt")),
                ("authorization-mode", "Node,RBAC"),
                ("enable-admission-plugins", "NodeRestriction"),
                ("allow-privileged", "true"),
                // Names of nodes are no names of hosts here.
                ("kubelet-preferred-address-types", "InternalIP"),
                ("kubelet-certificate-authority", &pki("ca.crt")),
                ("kubelet-client-certificate", &pki("apiserver-kubelet.crt")),
                ("kubelet-client-key", &pki("apiserver-kubelet.key")),
                ("service-cluster-ip-range", &services),
                ("service-account-issuer", "https://kubernetes.default.svc"),
                ("service-account-key-file", &pki("service-accounts.pub")),
                ("service-account-signing-key-file", &pki("service-accounts.key")),
                ("requestheader-client-ca-file", &pki("ca.crt")),
                ("requestheader-allowed-names", "front-proxy"),
                ("requestheader-username-headers", "X-Remote-User"),
                ("requestheader-group-headers", "X-Remote-Group"),
                ("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
                ("proxy-client-cert-file", &pki("front-proxy.crt")),
                ("proxy-client-key-file", &pki("front-proxy.key")),
            ]),
            "kube-controller-manager" => {
                let bridge = self.config.cni == Cni::Bridge;
                let mut all = client(name);
                all.extend(flags(&[
                    ("service-account-private-key-file", &pki("service-accounts.key")),
                    ("root-ca-file", &pki("ca.crt")),
                    ("cluster-signing-cert-file", &pki("ca.crt")),
                    ("cluster-signing-key-file", &pki("ca.key")),
                    ("use-service-account-credentials", "true"),
                    ("service-cluster-ip-range", &services),
                    ("allocate-node-cidrs", if bridge { "true" } else { "false" }),
                ]));
                all.extend(bridge.then(|| format!("--cluster-cidr={BRIDGE_PODS}")));
                all
            }
            _ => client(name),
        })
    }
}

/// Where a program's log is.
fn log(folder: &Path, name: &str) -> PathBuf {
    folder.join("log").join(format!("{name}.log"))
}

/// Makes the folder of logs.
pub fn prepare(folder: &Path) -> anyhow::Result<()> {
    let logs = folder.join("log");
    fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))
}
