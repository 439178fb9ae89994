//! A node of the lab: its daemon, and commands that run on it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context;
use serde_json::Value;
use vpclab::{Lab, REQUESTS, wait_until};

use crate::{plugin, program};

/// Somewhere in the lab: a node by its name, `vpc`, `inet` or `peer`.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The lab.
    pub lab: &'a Lab,
    /// The name.
    pub name: &'a str,
}

impl<'a> Place<'a> {
    /// The node of this number.
    pub fn node(lab: &'a Lab, index: usize) -> Self {
        Place { lab, name: &lab.node(index).name }
    }

    /// Runs a shell line; its output, or its messages as an error.
    pub fn sh(&self, line: &str) -> anyhow::Result<String> {
        self.lab.run(self.name, "sh", &["-ec", line])
    }

    /// A command that will run here.
    pub fn command(&self, program: impl Into<PathBuf>) -> anyhow::Result<Command> {
        self.lab.command(self.name, &program.into().to_string_lossy())
    }

    /// One of the operator's commands, with its arguments, as JSON.
    pub fn enid(&self, name: &str) -> anyhow::Result<Value> {
        let arguments: Vec<&str> = name.split(' ').chain(["-o", "json"]).collect();
        let text = self.lab.run(self.name, &program("enid")?.to_string_lossy(), &arguments)?;
        serde_json::from_str(&text).with_context(|| format!("enid {name} prints no JSON: {text}"))
    }

    /// The leases, as the daemon lists them, without their age: so two lists can be compared.
    pub fn leases(&self) -> anyhow::Result<Vec<Value>> {
        let mut leases = self.enid("pods")?;
        let leases = leases.as_array_mut().context("enid pods prints no list")?;
        leases.iter_mut().filter_map(Value::as_object_mut).for_each(|lease| drop(lease.remove("age_ms")));
        Ok(std::mem::take(leases))
    }

    /// One of the numbers of `enid status`.
    pub fn number(&self, key: &str) -> anyhow::Result<u64> {
        let status = self.enid("status")?;
        status[key].as_u64().with_context(|| format!("enid status has no number {key}: {status}"))
    }

    /// Everything a pod could leave on the host, and the leases.
    pub fn snapshot(&self) -> anyhow::Result<String> {
        Ok(format!("{}\nleases {:?}", self.kernel()?, self.leases()?))
    }

    /// What the node's kernel has of pods and ENIs. Counters and times are left out.
    pub fn kernel(&self) -> anyhow::Result<String> {
        let commands = [
            "ip -o link show | sed 's/^[0-9]*: //' | sort",
            "ip -4 route show table all | sort",
            "ip rule show",
            "ip neigh show nud permanent | sort",
            "nft list ruleset | sed 's/packets [0-9]* bytes [0-9]*//'",
        ];
        let kernel: Vec<String> = commands.iter().map(|command| self.sh(command)).collect::<anyhow::Result<_>>()?;
        Ok(kernel.join("\n--\n"))
    }

    /// Reboots the node: all state in memory goes, and the kernel has another boot id. Its daemon must have ended.
    pub fn reboot(&self) -> anyhow::Result<()> {
        self.sh("for ns in $(ip netns list | cut -d' ' -f1); do ip netns del $ns; done
            ip rule flush; ip rule add pref 32766 lookup main; ip rule add pref 32767 lookup default
            nft flush ruleset
            for link in $(ls /sys/class/net | grep -v -e lo -e '^eth0$'); do
                # Links of namespaces that are gone go a little later.
                { ip addr flush dev $link && ip link set $link down; } || test ! -e /sys/class/net/$link
            done
            rm -rf /run/enid
            boot=/run/boot-$(cat /proc/sys/kernel/random/uuid)
            cat /proc/sys/kernel/random/uuid > $boot
            mount --bind $boot /proc/sys/kernel/random/boot_id")
            .map(drop)
    }

    /// Whether the daemon runs, STATUS says yes, and a new pod would get an address.
    pub fn serves(&self) -> bool {
        self.enid("status").is_ok_and(|status| status["ready"] == true && status["cause"] == "")
    }

    /// How many requests of instance metadata the node has made.
    pub fn metadata_requests(&self) -> anyhow::Result<u64> {
        let text = self.sh(&format!("curl -sSf http://169.254.169.254{REQUESTS}"))?;
        text.trim().parse().with_context(|| format!("{text:?} is no number of requests"))
    }

    /// The metrics page, as Prometheus reads it.
    pub fn metrics(&self) -> anyhow::Result<String> {
        self.sh("curl -sSf http://127.0.0.1:61678/metrics")
    }
}

/// A daemon starts within this, also in an emulated machine.
const START: Duration = Duration::from_secs(60);

/// A daemon that runs on a node. Dropping it kills it.
pub struct Daemon {
    child: Child,
    log_path: PathBuf,
}

impl Daemon {
    /// Starts one with these settings, and does not wait.
    pub fn spawn(place: Place<'_>, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::spawn_program(place, &program("enid")?, settings)
    }

    /// The same of another program.
    pub fn spawn_program(place: Place<'_>, enid: &Path, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        // As `enid init` does before the daemon starts.
        let plugin = plugin()?;
        place.lab.run(place.name, "install", &["-m", "755", &plugin.to_string_lossy(), "/opt/cni/bin/enid-cni"])?;
        let log_path = vpclab::folder(&place.lab.state().name).join(format!("{}.log", place.name));
        let log = File::options().create(true).append(true).open(&log_path).context("cannot write the daemon's log")?;
        let mut command = place.command("env")?;
        command.args(["AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test"]);
        command.arg("MALLOC_ARENA_MAX=1"); // as the image has it
        command.arg(format!("MY_NODE_NAME={}", place.name));
        if !settings.iter().any(|(name, _)| *name == "AWS_EC2_ENDPOINT") {
            command.arg(format!("AWS_ENDPOINT_URL_EC2={}", place.lab.state().ec2_endpoint));
        }
        command.args(settings.iter().map(|(name, value)| format!("{name}={value}")));
        let child = command
            .arg(enid)
            .arg("agent")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start the daemon")?;
        Ok(Daemon { child, log_path })
    }

    /// Starts one and waits until it can give an address.
    pub fn start(place: Place<'_>, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let daemon = Self::spawn(place, settings)?;
        wait_until(START, || place.serves())
            .with_context(|| format!("the daemon of {} does not become ready: {}", place.name, daemon.log()))?;
        Ok(daemon)
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log_path).unwrap_or_default()
    }

    /// The process number of the daemon itself, below `nsenter`.
    pub fn pid(&self) -> anyhow::Result<u32> {
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        let children = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        children.split_whitespace().next().and_then(|pid| pid.parse().ok()).context("the daemon does not run")
    }

    /// Stops it (SIGSTOP), or lets it continue.
    pub fn hang(&self, hangs: bool) -> anyhow::Result<()> {
        // `nsenter` above it stops itself when its child does, and continues only with a signal of its own. One that comes
        // before it has stopped is lost, and it stays stopped.
        let (pid, above) = (self.pid()?.to_string(), self.child.id().to_string());
        if !hangs {
            Command::new("kill").args(["-CONT", &pid, &above]).status().context("cannot run kill")?;
            return Ok(());
        }
        Command::new("kill").args(["-STOP", &pid]).status().context("cannot run kill")?;
        let state = format!("/proc/{above}/stat");
        let is_stopped = || fs::read_to_string(&state).is_ok_and(|stat| stat.contains(") T "));
        wait_until(START, is_stopped).context("nsenter above the daemon does not stop")
    }

    /// kill −9, and waits until it has ended.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.end()
    }

    /// Waits for its own end: the exit code.
    pub fn wait(mut self, bound: Duration) -> anyhow::Result<(Option<i32>, String)> {
        let mut code = None;
        wait_until(bound, || {
            code = self.child.try_wait().ok().flatten().map(|status| status.code());
            code.is_some()
        })
        .context("the daemon did not end")?;
        Ok((code.flatten(), self.log()))
    }

    fn end(&mut self) -> anyhow::Result<()> {
        if let Ok(pid) = self.pid() {
            self.hang(false)?;
            Command::new("kill").args(["-9", &pid.to_string()]).status().context("cannot run kill")?;
        }
        self.child.wait().context("cannot wait for the daemon")?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
