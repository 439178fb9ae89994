//! Traffic between places: one small server everywhere, asked over TCP, and `ping`.

use std::{
    io::{BufRead, BufReader, Read},
    net::{IpAddr, SocketAddr},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::Context;
use vpclab::wait_until;

use crate::{node::Place, program, still::wait_until_still};

/// Where every server listens.
pub const PORT: u16 = 8080;
/// Where it listens as well: a connection that is refused here was refused by a rule.
pub const REJECTED: u16 = 9999;

/// Where commands run.
pub trait Machine {
    /// A command that will run there.
    ///
    /// # Errors
    ///
    /// There is no such place.
    fn command(&self, program: &str) -> anyhow::Result<Command>;
}

impl Machine for Place<'_> {
    fn command(&self, program: &str) -> anyhow::Result<Command> {
        Place::command(self, program)
    }
}

impl Machine for &kubelab::Node {
    fn command(&self, program: &str) -> anyhow::Result<Command> {
        kubelab::Node::command(self, program)
    }
}

/// A place, or a pod's namespace on it.
#[derive(Clone, Copy)]
pub struct Spot<'a, M = Place<'a>> {
    /// The node or other place.
    pub place: M,
    /// The pod's namespace; `None` for the place itself.
    pub netns: Option<&'a str>,
}

/// What a server reports about a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The address it saw.
    pub client: String,
    /// The port that came with it.
    pub port: u16,
    /// Its own: the server that answered, whatever address the client connected to.
    pub server: String,
}

impl Answer {
    fn read(output: &str) -> anyhow::Result<Self> {
        let [client, port, server] = output.split_whitespace().collect::<Vec<_>>()[..] else {
            anyhow::bail!("the server did not report its address: {output:?}");
        };
        Ok(Answer { client: client.to_owned(), port: port.parse()?, server: server.to_owned() })
    }

    /// An error unless this client was answered by this server.
    pub fn expect(&self, client: &str, server: &str) -> anyhow::Result<()> {
        anyhow::ensure!(self.client == client, "the server saw {}, not {client}", self.client);
        anyhow::ensure!(self.server == server, "{} answered, not {server}", self.server);
        Ok(())
    }
}

/// A running server; dropping it ends it.
pub struct Servers {
    child: Child,
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.child.stdin.take()); // they end with their input
        let _ = self.child.wait();
    }
}

/// Starts a server in each namespace of a place, or on the place itself, and waits for all of them.
pub fn serve<M: Machine>(place: M, namespaces: &[&str]) -> anyhow::Result<Servers> {
    let probe = program("probe")?;
    let mut child = Machine::command(&place, &probe.to_string_lossy())?
        .arg("serve")
        .args(namespaces)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the servers")?;
    let mut line = String::new();
    let stdout = child.stdout.take().context("the servers have no output")?;
    BufReader::new(stdout).read_line(&mut line)?;
    anyhow::ensure!(line.trim() == "ready", "the servers in {namespaces:?} do not start");
    Ok(Servers { child })
}

/// One connection on which data flows all the time.
pub struct Stream {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Stream {
    /// Ends it; the addresses that both sides saw, once every byte has arrived.
    pub fn end(mut self) -> anyhow::Result<Answer> {
        drop(self.child.stdin.take());
        let mut output = String::new();
        self.output.read_to_string(&mut output)?;
        anyhow::ensure!(self.child.wait()?.success(), "the stream broke off");
        Answer::read(&output)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// New connections, ten a second, and datagrams that are sent back, fifty a second.
pub struct Flows {
    child: Child,
}

/// What became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub struct Counted {
    /// Connections that were answered.
    pub connections: u32,
    /// Connections that were not, within three seconds.
    pub failed: u32,
    /// Datagrams that were sent.
    pub sent: u32,
    /// Those of them that came back.
    pub back: u32,
}

impl Flows {
    /// Ends them.
    pub fn end(mut self) -> anyhow::Result<Counted> {
        drop(self.child.stdin.take());
        let mut output = String::new();
        self.child.stdout.take().context("the flows have no output")?.read_to_string(&mut output)?;
        serde_json::from_str(&output).with_context(|| format!("flows printed {output:?}"))
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Counts datagrams. They are not read, since a reader may be too slow: the socket's queue is full after the first few
/// hundred, and the kernel counts all later ones.
pub struct Sink<'a> {
    place: Place<'a>,
    child: Child,
}

impl<'a> Sink<'a> {
    /// Opens one on a place.
    pub fn open(place: Place<'a>) -> anyhow::Result<Self> {
        let mut child = Spot { place, netns: None }.spawn(&program("probe")?.to_string_lossy(), &["sink"])?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("the sink has no output")?).read_line(&mut line)?;
        anyhow::ensure!(line.trim() == "ready", "the sink on {} does not start", place.name);
        Ok(Sink { place, child })
    }

    /// How many have arrived since its queue was full, once no more arrive.
    pub fn received(&self) -> anyhow::Result<u32> {
        wait_until_still(Duration::from_secs(5), Duration::from_millis(50), || self.counted())
            .context("datagrams do not end")
    }

    /// The last column of the socket's line (proc_net_udp: drops).
    fn counted(&self) -> anyhow::Result<u32> {
        let path = format!("/proc/{}/net/udp", self.place.lab.state().pid_of(self.place.name)?);
        let table = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let own = table.lines().find(|line| line.contains(&format!(" 00000000:{PORT:04X} ")));
        let drops = own.and_then(|line| line.split_whitespace().last()?.parse().ok());
        drops.with_context(|| format!("no sink in {table}"))
    }
}

impl Drop for Sink<'_> {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// An echo every hundredth of a second.
pub struct Ping {
    child: Child,
}

impl Ping {
    /// Ends it: how many were sent, how many came back.
    pub fn end(mut self) -> anyhow::Result<(u32, u32)> {
        Command::new("kill").args(["-INT", &leaf(self.child.id())?.to_string()]).status().context("cannot run kill")?;
        let mut output = String::new();
        self.child.stdout.take().context("ping has no output")?.read_to_string(&mut output)?;
        let number = |before: &str| output.split(before).next()?.rsplit([' ', '\n']).next()?.parse().ok();
        let counts = number(" packets transmitted").zip(number(" received"));
        counts.with_context(|| format!("ping printed {output:?}"))
    }
}

impl Drop for Ping {
    fn drop(&mut self) {
        let _ = end(&mut self.child);
    }
}

/// Ends what was started by way of other programs, and waits for all of them.
pub fn end(child: &mut Child) -> anyhow::Result<()> {
    if child.try_wait()?.is_none() {
        Command::new("kill").arg(leaf(child.id())?.to_string()).status().context("cannot run kill")?;
    }
    child.wait().map(drop).context("cannot wait for it")
}

/// The last of a chain of only children: `nsenter` and `ip netns exec` are parents of what they run.
fn leaf(mut pid: u32) -> anyhow::Result<u32> {
    loop {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        match children.split_whitespace().next() {
            Some(child) => pid = child.parse()?,
            None => return Ok(pid),
        }
    }
}

/// Address and port as programs write them, of either family.
fn socket(address: &str, port: u16) -> anyhow::Result<String> {
    let address: IpAddr = address.parse().with_context(|| format!("{address:?} is no IP address"))?;
    Ok(SocketAddr::new(address, port).to_string())
}

impl<M: Machine> Spot<'_, M> {
    fn command(&self, program: &str) -> anyhow::Result<Command> {
        let Some(netns) = self.netns else { return self.place.command(program) };
        let mut command = self.place.command("ip")?;
        command.args(["netns", "exec", netns, program]);
        Ok(command)
    }

    fn spawn(&self, program: &str, args: &[&str]) -> anyhow::Result<Child> {
        let mut command = self.command(program)?;
        let piped = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        piped.spawn().with_context(|| format!("cannot start {program}"))
    }

    /// Opens a connection and keeps data flowing on it.
    pub fn stream(&self, address: &str, port: u16) -> anyhow::Result<Stream> {
        let probe = program("probe")?;
        let mut child = self.spawn(&probe.to_string_lossy(), &["stream", &socket(address, port)?])?;
        let mut output = BufReader::new(child.stdout.take().context("the stream has no output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        anyhow::ensure!(line.trim() == "ready", "no connection to {address}:{port}");
        Ok(Stream { child, output })
    }

    /// Opens connections and sends datagrams all the time.
    pub fn flows(&self, address: &str, port: u16) -> anyhow::Result<Flows> {
        let probe = program("probe")?;
        Ok(Flows { child: self.spawn(&probe.to_string_lossy(), &["flows", &socket(address, port)?])? })
    }

    /// Sends small datagrams as fast as possible: how many, in how many seconds.
    pub fn flood(&self, address: &str, port: u16, ms: u64) -> anyhow::Result<(u32, f64)> {
        let probe = program("probe")?;
        let output = self.run(&probe.to_string_lossy(), &["flood", &socket(address, port)?, &ms.to_string()])?;
        let numbers =
            output.trim().split_once(' ').and_then(|(sent, took)| Some((sent.parse().ok()?, took.parse().ok()?)));
        numbers.with_context(|| format!("a flood printed {output:?}"))
    }

    /// How long an echo takes on average, of two hundred.
    pub fn echo_ms(&self, address: &str) -> anyhow::Result<f64> {
        let output = self.run("ping", &["-n", "-q", "-i", "0.005", "-c", "200", address])?;
        let average =
            output.split("rtt min/avg/max/mdev = ").nth(1).and_then(|rest| rest.split('/').nth(1)?.parse().ok());
        average.with_context(|| format!("ping printed {output:?}"))
    }

    /// Echoes, a hundred a second.
    pub fn ping_on(&self, address: &str) -> anyhow::Result<Ping> {
        Ok(Ping { child: self.spawn("ping", &["-n", "-q", "-i", "0.01", address])? })
    }

    fn run(&self, program: &str, args: &[&str]) -> anyhow::Result<String> {
        let output = self.command(program)?.args(args).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("cannot run {program}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = || format!("{}{}", text(&output.stdout), text(&output.stderr));
        anyhow::ensure!(output.status.success(), "{program} {args:?} ended with {}: {}", output.status, said().trim());
        Ok(text(&output.stdout))
    }

    /// Connects and sends a few hundred kilobytes; returns the addresses that both sides saw.
    pub fn ask(&self, address: &str, port: u16) -> anyhow::Result<Answer> {
        let probe = program("probe")?;
        let output = self.run(&probe.to_string_lossy(), &["ask", &socket(address, port)?])?;
        Answer::read(&output)
    }

    /// Sends a word from this port, and from this address whether it is the place's own or not (IP_TRANSPARENT), if one
    /// is given; returns the addresses that both sides saw.
    pub fn ask_as(&self, own: (&str, u16), address: &str, port: u16) -> anyhow::Result<Answer> {
        let program = "import socket, sys
own, own_port, server, port = sys.argv[1:]
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if own: s.setsockopt(socket.SOL_IP, 19, 1)
s.settimeout(3)
s.bind((own, int(own_port)))
s.connect((server, int(port)))
s.send(b'proxy')
s.shutdown(socket.SHUT_WR)
sent, addresses = s.recv(100).decode().split(' ', 1)
assert sent == '5', sent
print(addresses)
";
        let output = self.run("python3", &["-c", program, own.0, &own.1.to_string(), address, &port.to_string()])?;
        Answer::read(&output)
    }

    /// One echo with this many bytes that may not be fragmented.
    pub fn ping(&self, address: &str, bytes: u32) -> anyhow::Result<()> {
        let bytes = bytes.to_string();
        self.run("ping", &["-n", "-q", "-c", "1", "-W", "2", "-M", "do", "-s", &bytes, address]).map(drop)
    }
}

/// Waits until a counter of a table reaches a number.
pub fn wait_for_counter(place: Place<'_>, counter: &str, least: u64) -> anyhow::Result<u64> {
    let mut seen = 0;
    wait_until(Duration::from_secs(3), || {
        seen = read_counter(place, counter).unwrap_or(0);
        seen >= least
    })
    .with_context(|| format!("the counter {counter} on {} is {seen}", place.name))?;
    Ok(seen)
}

/// Packets of one of our own counters.
pub fn read_counter(place: Place<'_>, counter: &str) -> anyhow::Result<u64> {
    let text = place.sh(&format!("nft list counter ip enid {counter}"))?;
    let number = text.split("packets ").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("no counter in {text}"))
}
