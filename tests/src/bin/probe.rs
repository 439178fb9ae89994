//! `probe serve [NETNS…]` answers every connection with the address and the port it saw and its own address; `probe ask
//! ADDR:PORT` asks one; `probe flood ADDR:PORT MS` sends small datagrams as fast as it can and prints how many it has
//! sent, and the seconds that it took; `probe sink` has a socket for them and does not read it.
//!
//! `probe stream ADDR:PORT` asks one and goes on asking on the same connection, a hundred times a second, until its
//! input ends.
//!
//! `probe flows ADDR:PORT` opens a connection ten times a second and sends a datagram fifty times a second, until its input
//! ends, and prints what was answered.
//!
//! A question carries 256 KiB, so that a path which loses large packets does not pass.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use enid_tests::traffic::{PORT, REJECTED};

const LIMIT: Duration = Duration::from_secs(3);
/// How long a stream may stand still: it outlives a repair, after which TCP waits for its next try.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may say nothing.
const SILENCE: Duration = Duration::from_secs(300);
const BYTES: usize = 256 * 1024;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["ask", address] => ask(address.parse().context("ask needs ADDR:PORT")?),
        ["stream", address] => stream(address.parse().context("stream needs ADDR:PORT")?),
        ["flood", address, ms] => flood(address.parse().context("flood needs ADDR:PORT")?, ms.parse()?),
        ["flows", address] => flows(address.parse().context("flows needs ADDR:PORT")?),
        ["sink"] => sink(),
        ["serve"] => serve(),
        ["serve", namespaces @ ..] => serve_in(namespaces),
        _ => bail!(
            "probe serve [NETNS...] | probe ask ADDR:PORT | probe stream ADDR:PORT | probe flows ADDR:PORT | probe flood ADDR:PORT MS | probe sink"
        ),
    }
}

fn ask(address: SocketAddr) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.write_all(&vec![7; BYTES]).context("send")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut seen = String::new();
    stream.read_to_string(&mut seen).context("read the answer")?;
    let (bytes, addresses) = seen.split_once(' ').context("an answer")?;
    anyhow::ensure!(bytes == BYTES.to_string(), "the server got {bytes} of {BYTES} bytes");
    println!("{addresses}");
    Ok(())
}

fn stream(address: SocketAddr) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    println!("ready");
    let ended = end_of_input();
    let mut sent = 0;
    while ended.recv_timeout(Duration::from_millis(10)).is_err() {
        sent += stream.write(&[7; 100]).context("send")?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut seen = String::new();
    stream.read_to_string(&mut seen).context("read the answer")?;
    let (bytes, addresses) = seen.split_once(' ').context("an answer")?;
    anyhow::ensure!(bytes == sent.to_string(), "the server got {bytes} of {sent} bytes");
    println!("{addresses}");
    Ok(())
}

fn flows(address: SocketAddr) -> anyhow::Result<()> {
    let any = if address.is_ipv4() { "0.0.0.0" } else { "::" };
    let socket = UdpSocket::bind((any, 0)).context("open a socket")?;
    socket.connect(address).context("connect")?;
    socket.set_read_timeout(Some(LIMIT))?;
    let receiver = socket.try_clone()?;
    let back = std::thread::spawn(move || {
        let mut back = 0_u32;
        // The last ones are waited for as long as a read may take.
        while receiver.recv(&mut [0; 64]).is_ok() {
            back += 1;
        }
        back
    });
    let ended = end_of_input();
    let (mut connections, mut failed, mut sent, mut turn) = (0_u32, 0_u32, 0_u32, 0_u32);
    while ended.recv_timeout(Duration::from_millis(20)).is_err() {
        // One that this host refuses to send is lost, too.
        let _ = socket.send(&[7; 18]);
        sent += 1;
        turn += 1;
        if turn.is_multiple_of(5) {
            match TcpStream::connect_timeout(&address, LIMIT) {
                Ok(_) => connections += 1,
                Err(_) => failed += 1,
            }
        }
    }
    let back = back.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))?;
    println!(r#"{{"connections":{connections},"failed":{failed},"sent":{sent},"back":{back}}}"#);
    Ok(())
}

/// Hears of the end of the input.
fn end_of_input() -> std::sync::mpsc::Receiver<()> {
    let (end, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = end.send(());
    });
    ended
}

fn flood(address: SocketAddr, ms: u64) -> anyhow::Result<()> {
    /// Packets between two looks at the clock.
    const TOGETHER: u32 = 64;
    let any = if address.is_ipv4() { "0.0.0.0" } else { "::" };
    let socket = UdpSocket::bind((any, 0)).context("open a socket")?;
    socket.connect(address).context("connect")?;
    let (started, limit) = (Instant::now(), Duration::from_millis(ms));
    let mut sent = 0_u32;
    while started.elapsed() < limit {
        for _ in 0..TOGETHER {
            // The queue of a veth is full now and then; such a packet does not count.
            sent += u32::from(socket.send(&[7; 18]).is_ok());
        }
    }
    println!("{sent} {}", started.elapsed().as_secs_f64());
    Ok(())
}

fn sink() -> anyhow::Result<()> {
    let _socket = UdpSocket::bind(("0.0.0.0", PORT)).context("listen")?;
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn serve() -> anyhow::Result<()> {
    for port in [PORT, REJECTED] {
        // Of both families: IPv4 callers have addresses that are mapped into IPv6.
        let listener = TcpListener::bind(("::", port)).context("listen")?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || answer(stream));
            }
        });
    }
    let echo = UdpSocket::bind(("::", PORT)).context("listen")?;
    std::thread::spawn(move || {
        let mut datagram = [0; 64];
        while let Ok((length, from)) = echo.recv_from(&mut datagram) {
            let _ = echo.send_to(&datagram[..length], from);
        }
    });
    println!("ready");
    // The end of the input is the word to end.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    let (peer, own) = (stream.peer_addr()?, stream.local_addr()?.ip().to_canonical());
    stream.write_all(format!("{} {} {} {own}", all.len(), peer.ip().to_canonical(), peer.port()).as_bytes())
}

fn serve_in(namespaces: &[&str]) -> anyhow::Result<()> {
    let own = std::env::current_exe()?;
    let mut servers = Vec::new();
    for netns in namespaces {
        let mut child = Command::new("ip")
            .args(["netns", "exec", netns])
            .arg(&own)
            .arg("serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start a server in {netns}"))?;
        let mut line = [0; 6];
        child
            .stdout
            .take()
            .context("no output")?
            .read_exact(&mut line)
            .with_context(|| format!("server in {netns}"))?;
        servers.push(child);
    }
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    for mut server in servers {
        drop(server.stdin.take());
        server.wait()?;
    }
    Ok(())
}
