//! A cluster: brought up, used, taken down.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::Value;
use vpclab::{CONTROL_PLANE, Lab, State, wait_until};

use crate::{
    charts,
    config::{ClusterConfig, Cni, check_room, folder},
    control_plane::{self, ControlPlane},
    node::{Node, NodeFiles},
    parts::Parts,
};

/// Images are imported, and kubelets register.
const BOUND: Duration = Duration::from_secs(120);

/// A running cluster. Dropping it leaves it running; [`Cluster::down`] ends it, and so does the end of its lab.
pub struct Cluster {
    config: ClusterConfig,
    lab: Lab,
    parts: Parts,
    folder: PathBuf,
}

impl Cluster {
    /// Makes a cluster on a lab that has been brought up for it ([`ClusterConfig::lab`]). `tell` hears what was done and
    /// how long it took.
    pub fn raise(config: ClusterConfig, lab: Lab, tell: &mut dyn FnMut(&str, Duration)) -> anyhow::Result<Self> {
        config.check()?;
        check_room()?;
        let folder = folder(&config.name);
        if folder.exists() {
            bail!("{} is there already; `kubelab down --name {}` removes it", folder.display(), config.name);
        }
        control_plane::prepare(&folder)?;
        let cluster = Cluster { config, lab, parts: Parts::find()?, folder };
        let path = cluster.folder.join("cluster.json");
        fs::write(&path, serde_json::to_string_pretty(&cluster.config).context("cannot write JSON")?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let mut started = Instant::now();
        let mut told = |what: &str| {
            tell(what, started.elapsed());
            started = Instant::now();
        };
        let Cluster { config, lab, parts, folder } = &cluster;
        let control_plane = cluster.control_plane();
        let pki = control_plane.credentials()?;
        // Nodes boot meanwhile: kubelets ask until they are answered.
        for (index, node) in cluster.nodes()?.iter().enumerate() {
            NodeFiles::write(config, lab, index, node.folder(), &control_plane.server()?, (&pki, parts))?;
            if index < config.nodes {
                node.boot()?;
            }
        }
        control_plane.start()?;
        told("the control plane is ready");
        let mut ended = None;
        let registered = wait_until(BOUND, || {
            ended = cluster.nodes().unwrap_or_default().into_iter().take(config.nodes).find(|node| !node.runs());
            ended.is_some() || cluster.counted("nodes").is_ok_and(|count| count == config.nodes)
        });
        if let Some(node) = ended {
            bail!("{} has ended: {}", node.name, node.said());
        }
        registered.with_context(|| format!("not all nodes register; logs are in {}/nodes", folder.display()))?;
        told("the nodes have registered");
        match config.cni {
            Cni::Enid => {
                cluster.install_enid(&[])?;
                told("Enid is installed");
            }
            Cni::Bridge => {
                cluster.apply(&charts::bridge(&parts.plugins()).to_string())?;
                cluster.kubectl(&["-n", "kube-system", "rollout", "status", "daemonset/bridge", "--timeout=60s"])?;
                told("the bridge plugin is installed");
            }
            Cni::None => (),
        }
        if config.cni != Cni::None {
            let ready = ["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=60s"];
            cluster.kubectl(&ready).context("not all nodes become ready")?;
            told("the nodes are ready");
            cluster.apply(&charts::coredns(config))?;
            cluster.kubectl(&["-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=60s"])?;
            told("names are resolved");
        }
        Ok(cluster)
    }

    /// A cluster that has been made before.
    pub fn attach(name: &str) -> anyhow::Result<Self> {
        vpclab::check_name(name)?;
        let folder = folder(name);
        let path = folder.join("cluster.json");
        let text = fs::read(&path).with_context(|| format!("there is no cluster {name:?} ({})", path.display()))?;
        let config =
            serde_json::from_slice(&text).with_context(|| format!("{} is not what kubelab writes", path.display()))?;
        let lab = Lab::attach(name)?;
        if !lab.state().is_live() {
            bail!("the cluster {name:?} was killed; `kubelab down --name {name}` cleans up");
        }
        Ok(Cluster { config, lab, parts: Parts::find()?, folder })
    }

    /// The lab below it.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// What it was asked to have.
    pub fn config(&self) -> &ClusterConfig {
        &self.config
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What it is governed by.
    pub fn control_plane(&self) -> ControlPlane<'_> {
        let Cluster { config, lab, parts, folder } = self;
        ControlPlane { lab, config, folder, parts }
    }

    /// Its nodes.
    pub fn nodes(&self) -> anyhow::Result<Vec<Node>> {
        self.lab.state().nodes.iter().map(|node| Node::of(&self.lab, &self.folder, &node.name)).collect()
    }

    /// The administrator's kubeconfig. Its API server is an address of the VPC.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    /// A command where the API server is reached, with `KUBECONFIG` set, and kubectl and helm in its path.
    pub fn command(&self, program: &Path) -> anyhow::Result<Command> {
        let mut command = self.lab.command(CONTROL_PLANE, &program.to_string_lossy())?;
        let helm = self.parts.helm();
        let folders =
            [self.parts.folder().as_path(), helm.parent().unwrap_or(&helm)].map(|path| path.display().to_string());
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("KUBECONFIG", self.kubeconfig()).env("PATH", format!("{}:{path}", folders.join(":")));
        for kind in ["CACHE", "CONFIG", "DATA"] {
            command.env(format!("HELM_{kind}_HOME"), self.folder.join("helm"));
        }
        Ok(command)
    }

    /// Runs kubectl; what it prints, or its messages as an error.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.run(&self.parts.program("kubectl"), arguments, "")
    }

    /// Runs kubectl with an input.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        self.run(&self.parts.program("kubectl"), arguments, input)
    }

    /// Runs helm.
    pub fn helm(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.run(&self.parts.helm(), arguments, "")
    }

    /// Applies a manifest.
    pub fn apply(&self, manifest: &str) -> anyhow::Result<String> {
        self.kubectl_with(&["apply", "-f", "-"], manifest)
    }

    /// Objects of a kind, in all namespaces, as the API server has them; more arguments narrow that.
    pub fn list(&self, kind: &str, more: &[&str]) -> anyhow::Result<Vec<Value>> {
        let text = self.kubectl(&[&["get", kind, "-A", "-o", "json"], more].concat())?;
        let list: Value = serde_json::from_str(&text).with_context(|| format!("kubectl get {kind} prints no JSON"))?;
        list["items"].as_array().cloned().with_context(|| format!("kubectl get {kind} prints no list"))
    }

    fn counted(&self, kind: &str) -> anyhow::Result<usize> {
        self.list(kind, &["--request-timeout=5s"]).map(|items| items.len())
    }

    /// Installs Enid by its chart, or changes what is installed, and waits until it is rolled out.
    pub fn install_enid(&self, more: &[&str]) -> anyhow::Result<String> {
        let values = self.folder.join("values.json");
        let text = charts::values(&self.config, &self.lab.state().ec2_endpoint).to_string();
        fs::write(&values, text).with_context(|| format!("cannot write {}", values.display()))?;
        let mut arguments = vec!["upgrade", "--install", "enid", charts::CHART, "--namespace", "kube-system"];
        let files: Vec<String> =
            [&values].into_iter().chain(&self.config.values).map(|path| path.display().to_string()).collect();
        arguments.extend(files.iter().flat_map(|path| ["--values", path]));
        // What was changed by hand is the chart's again.
        arguments.extend(["--wait", "--timeout", "120s", "--force-conflicts"]);
        arguments.extend(more);
        self.helm(&arguments).context("Enid cannot be installed")
    }

    fn run(&self, program: &Path, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let mut command = self.command(program)?;
        let mut child = command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read to the end says why in its answer.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().context("cannot wait for a program of Kubernetes")?;
        if !output.status.success() {
            let name = program.file_name().unwrap_or_default().display();
            bail!("{name} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Removes what a cluster leaves on the machine once its lab is down, also one that was killed.
    pub fn down(name: &str) -> anyhow::Result<()> {
        vpclab::check_name(name)?;
        if State::read(name).is_ok_and(|state| state.is_live()) {
            bail!("the lab of the cluster {name:?} is running; `kubelab down --name {name}` ends both");
        }
        crate::node::remove_cgroups(name);
        let folder = folder(name);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", folder.display()))
            }
            _ => Ok(()),
        }
    }
}
