//! A node: containerd, kubelet and kube-proxy on a node of the lab, in namespaces below the lab's.
//!
//! They are below the lab's so that the end of their process 1 is the end of the machine as Kubernetes sees it, while
//! the instance and its ENIs remain: [`Node::reboot`].

pub mod boot;
mod cgroups;
mod files;

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use vpclab::{Lab, namespaces::child_of, output, program_named, start_of, wait_until};

pub use files::{NodeFiles, STATIC_PODS};

/// Starting containerd and importing images takes some seconds each.
const BOUND: Duration = Duration::from_secs(60);

/// A node of a cluster.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name, which is that of the lab's node.
    pub name: String,
    /// The name of its cluster.
    cluster: String,
    /// Its files on the machine.
    folder: PathBuf,
    /// Process 1 of the lab's node.
    holder: u32,
}

impl Node {
    /// The node of this name.
    pub fn of(lab: &Lab, folder: &std::path::Path, name: &str) -> anyhow::Result<Self> {
        let holder = lab.state().pid_of(name)?;
        Ok(Node {
            name: name.to_owned(),
            cluster: lab.state().name.clone(),
            folder: folder.join("nodes").join(name),
            holder,
        })
    }

    /// Where its logs and its disk are, on the machine.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    fn cgroup(&self) -> String {
        format!("kubelab.{}.{}", self.cluster, self.name)
    }

    /// Boots it, as its files say, and waits until its process 1 runs.
    pub fn boot(&self) -> anyhow::Result<()> {
        let cgroup = cgroups::create(&self.cgroup())?;
        let log = self.folder.join("boot.log");
        let out = fs::File::options().create(true).append(true).open(&log);
        let out = out.with_context(|| format!("cannot write {}", log.display()))?;
        let program = program_named("kubelab", "KUBELAB_BIN")?;
        // The shell joins the cgroups, and becomes what follows.
        let mut shell = Command::new("setsid")
            .args(["sh", "-ec", "for tasks in $0; do echo $$ > $tasks; done; exec \"$@\"", &cgroup])
            .args(["nsenter", "-t", &self.holder.to_string(), "-n", "-m", "-u", "-p", "-i", "--"])
            .args(["unshare", "-m", "-p", "-C", "-f", "--kill-child=KILL", "--mount-proc", "--"])
            .arg(program)
            .arg("boot")
            .arg(&self.folder)
            .stdin(Stdio::null())
            .stdout(out.try_clone().context("cannot share a log")?)
            .stderr(out)
            .spawn()
            .context("cannot run setsid (util-linux)")?;
        // nsenter, unshare, process 1.
        let mut pid = None;
        let found = wait_until(BOUND, || {
            pid = child_of(shell.id()).and_then(child_of).ok();
            pid.is_some() || shell.try_wait().is_ok_and(|status| status.is_some())
        });
        let Some(pid) = pid.filter(|_| found.is_ok()) else {
            bail!("{} does not boot: {}", self.name, self.said());
        };
        let path = self.folder.join("pid");
        let known = format!("{pid} {}", start_of(pid).unwrap_or_default());
        fs::write(&path, known).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Whether it has been booted before.
    pub fn has_booted(&self) -> bool {
        self.folder.join("boot.log").exists()
    }

    /// Whether it has its images and starts its kubelet.
    pub fn has_images(&self) -> bool {
        self.folder.join(boot::IMPORTED).exists()
    }

    /// What its process 1 has said of itself.
    pub fn said(&self) -> String {
        fs::read_to_string(self.folder.join("boot.log")).unwrap_or_default().trim().to_owned()
    }

    /// Whether its process 1 runs.
    pub fn runs(&self) -> bool {
        self.pid().is_ok()
    }

    /// Its process 1, numbered as outside of it.
    pub fn pid(&self) -> anyhow::Result<u32> {
        let path = self.folder.join("pid");
        let text = fs::read_to_string(&path).with_context(|| format!("{} does not run", self.name))?;
        let known = text.split_once(' ').and_then(|(pid, start)| Some((pid.parse().ok()?, start.parse().ok()?)));
        let (pid, start) = known.with_context(|| format!("{} holds no process: {text:?}", path.display()))?;
        // Another process may have its number by now.
        ensure!(start_of(pid) == Some(start), "{} does not run any more", self.name);
        Ok(pid)
    }

    /// A command that will run on it.
    pub fn command(&self, program: &str) -> anyhow::Result<Command> {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid()?.to_string(), "-n", "-m", "-u", "-p", "-i", "-C", "--", program]);
        Ok(command)
    }

    /// Runs a shell line on it; its output, or its messages as an error.
    pub fn sh(&self, line: &str) -> anyhow::Result<String> {
        output(self.command("sh")?.args(["-ec", line]))
    }

    /// Ends it as a loss of power does: every process at once, and all that a kernel holds in memory. ENIs stay.
    pub fn stop(&self) -> anyhow::Result<()> {
        // One that has been stopped before may lack what follows.
        if let Ok(pid) = self.pid() {
            Command::new("kill").args(["-9", &pid.to_string()]).status().context("cannot run kill")?;
            let path = PathBuf::from("/proc").join(pid.to_string());
            wait_until(BOUND, || !path.exists()).with_context(|| format!("{} does not end", self.name))?;
            let _ = fs::remove_file(self.folder.join("pid"));
        }
        output(Command::new("nsenter").args(["-t", &self.holder.to_string(), "-n", "--", "sh", "-ec", FORGET]))
            .with_context(|| format!("what {} had in memory cannot be removed", self.name))?;
        cgroups::empty(&self.cgroup());
        Ok(())
    }

    /// Ends it and boots it again.
    pub fn reboot(&self) -> anyhow::Result<()> {
        self.stop()?;
        self.boot()
    }
}

/// Removes the cgroups of a cluster's nodes, once their processes have ended.
pub fn remove_cgroups(cluster: &str) {
    cgroups::remove(&format!("kubelab.{cluster}."));
}

/// What the kernel of a real machine forgets with its memory. The primary ENI keeps what DHCP gives it at once again.
const FORGET: &str = "
for family in -4 -6; do
    ip $family rule flush
    ip $family rule add pref 32766 lookup main
done
ip rule add pref 32767 lookup default
nft flush ruleset
for tables in iptables-legacy ip6tables-legacy; do
    for table in filter nat mangle raw; do $tables -t $table -F; $tables -t $table -X; done 2>/dev/null || true
done
for kind in bridge ifb; do
    for link in $(ip -br link show type $kind | cut -d' ' -f1); do ip link del $link; done
done
for link in $(ip -br link | cut -d' ' -f1 | cut -d@ -f1 | grep -v -e '^lo$' -e '^eth0$'); do
    # Pods' links go meanwhile by themselves, with their namespaces.
    ip addr flush dev $link && ip link set $link down || ! ip link show $link >/dev/null 2>&1
done
";
