//! A set of namespaces and its process 1: they exist exactly as long as it runs.
//!
//! It ends when its standard input does, that is with the lab's process, whatever ends that one.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use nix::sys::wait::waitpid;

use crate::{program::program, wait};

/// Mounts of a node: standard paths are its own, the rest is the machine's. Overlays take what is
/// written to `/etc`, `/opt` and `/var/lib` into memory.
const NODE_MOUNTS: &str = r#"
mount --make-rprivate /
mkdir -p /run/vpclab
mount -t tmpfs cg /run/vpclab
mkdir /run/vpclab/cg
mount --rbind /sys/fs/cgroup /run/vpclab/cg
umount -R -l /sys
mount -t sysfs sysfs /sys
mount --rbind /run/vpclab/cg /sys/fs/cgroup 2>/dev/null || true
# What another mount covers is still listed, and runc would take it for the cgroups.
umount -R -l /run/vpclab/cg
umount /run/vpclab
mount -t tmpfs run /run
mkdir -p /run/netns /run/overlay
for d in etc opt var/lib; do
    mkdir -p /run/overlay/$d/upper /run/overlay/$d/work
    mount -t overlay overlay -o lowerdir=/$d,upperdir=/run/overlay/$d/upper,workdir=/run/overlay/$d/work /$d
done
mkdir -p /etc/cni/net.d /opt/cni/bin /var/lib/enid
"#;

/// Process 1: sets the mounts up, prints "ready", and waits for the end of its input.
pub fn init(host_name: &str, node: bool) -> anyhow::Result<()> {
    nix::unistd::sethostname(host_name).context("cannot set the host's name")?;
    let mounts = if node { NODE_MOUNTS } else { "mount --make-rprivate /" };
    let status = Command::new("sh").args(["-euc", mounts]).stdin(Stdio::null()).status().context("cannot run sh")?;
    if !status.success() {
        bail!("the mounts of {host_name} cannot be made");
    }
    let loopback = Command::new("ip").args(["link", "set", "lo", "up"]).stdin(Stdio::null()).status();
    if !loopback.context("cannot run ip")?.success() {
        bail!("the loopback link of {host_name} cannot be taken up");
    }
    // Process 1 inherits every orphan, and has to reap it.
    thread::spawn(|| {
        loop {
            if waitpid(None, None).is_err() {
                wait::pause(Duration::from_millis(200));
            }
        }
    });
    println!("ready");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    Ok(())
}

/// A set of namespaces, from outside. Dropping it ends them.
pub struct Namespaces {
    unshare: Child,
    stdin: Option<ChildStdin>,
    /// Its process 1, numbered as outside of it.
    pub pid: u32,
}

impl Namespaces {
    /// Creates one and waits until it is complete.
    pub fn start(host_name: &str, node: bool) -> anyhow::Result<Self> {
        let mut unshare = Command::new("unshare")
            .args(["-n", "-m", "-u", "-p", "-i", "-f", "--kill-child=KILL", "--mount-proc", "--"])
            .arg(program()?)
            .args(["init", host_name])
            .args(node.then_some("--node"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run unshare (util-linux)")?;
        let stdin = unshare.stdin.take();
        let mut line = String::new();
        BufReader::new(unshare.stdout.take().context("unshare has no output")?).read_line(&mut line)?;
        if line.trim() != "ready" {
            let _ = unshare.wait();
            bail!("the namespaces of {host_name} cannot be made; root is needed, and a kernel with namespaces");
        }
        let pid = child_of(unshare.id())?;
        Ok(Namespaces { unshare, stdin, pid })
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.unshare.wait();
    }
}

/// The first child of a process.
pub fn child_of(pid: u32) -> anyhow::Result<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    children.split_whitespace().next().and_then(|child| child.parse().ok()).with_context(|| format!("{path} is empty"))
}
