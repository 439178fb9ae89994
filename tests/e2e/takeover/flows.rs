//! What goes on while a node changes hands.

use std::{
    io::Read,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use enid_tests::{
    Place,
    peer::PeerPod,
    traffic::{PORT, Ping, Spot, Stream},
    wait_until,
};
use vpclab::INTERNET_SERVER;

/// Connections that are open, and on which nothing is sent until they are told to.
pub struct Silent {
    connections: Vec<Child>,
    since: Instant,
}

impl Silent {
    pub fn open(place: Place<'_>, pods: &[&PeerPod], each: usize) -> Self {
        let program = format!(
            "import socket, sys
s = socket.create_connection(('{INTERNET_SERVER}', {PORT}), 3)
print(s.getsockname()[1], flush=True)
sys.stdin.read()
s.settimeout(10)
s.send(b'after')
s.shutdown(socket.SHUT_WR)
print(s.recv(100).decode())"
        );
        let open = |pod: &&PeerPod| {
            let mut command = place.command("ip").unwrap();
            command.args(["netns", "exec", &pod.pod.name, "python3", "-c", &program]);
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut line = [0; 1];
            child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
            child
        };
        let connections = pods.iter().flat_map(|pod| (0..each).map(move |_| pod)).map(open).collect();
        Silent { connections, since: Instant::now() }
    }

    /// Waits until they have been silent for so long.
    pub fn stay_silent(&self, period: Duration) {
        wait_until(period * 2, || self.since.elapsed() > period).unwrap();
    }

    /// Each pod writes first; the server has seen all of it. The addresses that the server saw.
    pub fn speak(self) -> Vec<String> {
        let seen = |mut child: Child| {
            drop(child.stdin.take());
            let mut said = String::new();
            child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
            assert!(child.wait().unwrap().success(), "a silent connection did not survive: {said}");
            let line = said.lines().last().unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(line[0], "5", "{said}");
            line[1].clone()
        };
        self.connections.into_iter().map(seen).collect()
    }
}

/// Streams between pods of all pairs of ENIs, and out of the VPC.
pub fn streams(place: Place<'_>, of_each: &[&PeerPod]) -> (Vec<Stream>, Vec<Ping>) {
    let spot = |pod: &PeerPod| pod.pod.name.clone();
    let (mut streams, mut pings) = (Vec::new(), Vec::new());
    for from in of_each {
        let name = spot(from);
        let inside = Spot { place, netns: Some(&name) };
        for to in of_each.iter().filter(|to| to.address != from.address) {
            streams.push(inside.stream(&to.address, PORT).unwrap());
            pings.push(inside.ping_on(&to.address).unwrap());
        }
        streams.push(inside.stream(INTERNET_SERVER, PORT).unwrap());
        pings.push(inside.ping_on(INTERNET_SERVER).unwrap());
    }
    (streams, pings)
}

/// The MACs of the host ends, which pods have as permanent neighbours.
pub fn macs(place: Place<'_>, pods: &[PeerPod]) -> Vec<String> {
    pods.iter().map(|pod| place.sh(&format!("cat /sys/class/net/{}/address", pod.ifname)).unwrap()).collect()
}
