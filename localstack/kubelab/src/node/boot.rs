//! Process 1 of a node: mounts, then the services, each started again when it ends.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::{
    mount::{MsFlags, mount},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        wait::wait,
    },
};
use serde_json::{Value, json};
use vpclab::{output, pause, wait_until};

use super::files::NodeFiles;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Containerd starts within a second.
const BOUND: Duration = Duration::from_secs(30);
/// In the node's folder, once it has its images.
pub const IMPORTED: &str = "imported";
/// A service that ended is not started again sooner after its last start.
const AGAIN: Duration = Duration::from_millis(500);

/// What a node has of its own: sysfs with its links, cgroups from its own downwards, /run, a boot id, and on a real disk
/// what containerd, kubelet and CNI write. `$1`: the node's folder. A name server that does not answer is no name server, so a
/// pull of an image that is not there ends at once.
///
/// The kubelet sets values that belong to the machine; it finds them as it wants them, in files over them.
const MOUNTS: &str = r#"
mount --make-rprivate /
mount --make-rshared /
hierarchies=$(for folder in /sys/fs/cgroup/*/; do [ -f "$folder/cgroup.procs" ] && basename "$folder"; done)
umount -R -l /sys
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /sys/fs/cgroup
for name in $hierarchies; do
    mkdir /sys/fs/cgroup/$name
    case $name in
    unified) mount -t cgroup2 cgroup2 /sys/fs/cgroup/$name ;;
    systemd) mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/$name ;;
    *) mount -t cgroup -o $name cgroup /sys/fs/cgroup/$name ;;
    esac
done
for folder in /opt/cni /etc/cni /var/lib/cni /var/lib/containerd /var/lib/kubelet /var/lib/enid /var/log/pods /var/log/containers; do
    mkdir -p $folder $1/disk$folder
    mount --bind $1/disk$folder $folder
done
mkdir -p /opt/cni/bin /etc/cni/net.d /var/lib/kubelet/manifests
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/containerd /run/lock
cat /proc/sys/kernel/random/uuid > /run/boot_id
mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
echo nameserver 127.0.0.1 > /run/resolv.conf
resolver=$(readlink -f /etc/resolv.conf)
[ -e $resolver ] || { mkdir -p $(dirname $resolver); touch $resolver; }
mount --bind /run/resolv.conf $resolver
for setting in vm/overcommit_memory:1 vm/panic_on_oom:0 kernel/panic:10 kernel/panic_on_oops:1 \
    kernel/keys/root_maxkeys:1000000 kernel/keys/root_maxbytes:25000000; do
    file=/run/sysctl-$(echo ${setting%:*} | tr / -)
    echo ${setting#*:} > $file
    mount --bind $file /proc/sys/${setting%:*}
done
echo 1 > /proc/sys/net/ipv4/ip_forward
mount --make-rshared /
"#;

/// Boots the node whose files are in this folder, and does not end.
pub fn boot(folder: &Path) -> anyhow::Result<()> {
    let files = NodeFiles::read(folder)?;
    nix::unistd::sethostname(&files.name).context("cannot set the host's name")?;
    output(Command::new("sh").args(["-euc", MOUNTS, "mounts"]).arg(folder))?;
    if let Some(plugins) = &files.plugins {
        output(Command::new("sh").args(["-euc", "cp $1/* /opt/cni/bin/", "plugins", plugins]))?;
    }
    // As service managers do for a kubelet; the machine's own limit may be lower.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")?;
    container_spec(&files)?;
    let mut services = Services { folder, files: &files, running: BTreeMap::new() };
    services.start(0)?;
    import(folder, &files)?;
    for index in 1..files.services.len() {
        services.start(index)?;
    }
    services.keep()
}

/// What containerd makes containers from: the ordinary one, and [`tell_boot_id`].
fn container_spec(files: &NodeFiles) -> anyhow::Result<()> {
    let ordinary = output(Command::new(format!("{}/ctr", files.programs)).args(["oci", "spec"]))?;
    let mut spec: Value = serde_json::from_str(&ordinary).context("ctr prints no JSON")?;
    let own = std::env::current_exe().context("cannot tell which program this is")?;
    spec["hooks"] = json!({ "createContainer": [{ "path": own, "args": ["kubelab", "container-hook"] }] });
    fs::write("/run/container.json", spec.to_string()).context("cannot write the specification of containers")
}

/// A hook of the container runtime (OCI runtime specification, createContainer): the runtime mounts a /proc of its own in
/// each container, which shows the machine's boot id; this puts the node's over it.
pub fn tell_boot_id() -> anyhow::Result<()> {
    let state: Value = serde_json::from_reader(std::io::stdin()).context("the runtime's state is no JSON")?;
    let bundle = state["bundle"].as_str().context("the runtime names no bundle")?;
    let target = Path::new(bundle).join("rootfs").join(BOOT_ID.trim_start_matches('/'));
    mount(Some("/run/boot_id"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot mount over {}", target.display()))
}

/// Gives containerd its images, at the first boot.
fn import(folder: &Path, files: &NodeFiles) -> anyhow::Result<()> {
    let ctr = format!("{}/ctr", files.programs);
    let answers = || Command::new(&ctr).args(["version"]).output().is_ok_and(|output| output.status.success());
    wait_until(BOUND, answers).context("containerd does not start; its log is containerd.log")?;
    let done = folder.join(IMPORTED);
    if done.exists() {
        return Ok(());
    }
    for archive in &files.images {
        output(Command::new(&ctr).args(["-n", "k8s.io", "images", "import", archive]))?;
    }
    File::create(&done).map(drop).with_context(|| format!("cannot write {}", done.display()))
}

/// Services of a node, by the number of their process.
struct Services<'a> {
    folder: &'a Path,
    files: &'a NodeFiles,
    running: BTreeMap<i32, (usize, Instant)>,
}

impl Services<'_> {
    fn start(&mut self, index: usize) -> anyhow::Result<()> {
        let [name, arguments @ ..] = self.files.services[index].as_slice() else { bail!("a service without a name") };
        let path = self.folder.join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("cannot write {}", path.display()))?;
        let programs = &self.files.programs;
        let child = Command::new(format!("{programs}/{name}"))
            .args(arguments)
            .env("PATH", format!("{programs}:/usr/sbin:/usr/bin:/sbin:/bin"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share a log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let pid = i32::try_from(child.id()).context("a process number of more than 31 bits")?;
        fs::write(format!("/run/{name}.pid"), pid.to_string()).with_context(|| format!("cannot write {name}.pid"))?;
        self.running.insert(pid, (index, Instant::now()));
        Ok(())
    }

    /// Reaps whatever ends, and starts services again.
    fn keep(&mut self) -> anyhow::Result<()> {
        loop {
            let status = wait().context("cannot wait for processes")?;
            let Some(pid) = status.pid() else { continue };
            let Some((index, started)) = self.running.remove(&pid.as_raw()) else { continue };
            eprintln!("{} ended: {status:?}", self.files.services[index][0]);
            pause(AGAIN.saturating_sub(started.elapsed()));
            self.start(index)?;
        }
    }
}
