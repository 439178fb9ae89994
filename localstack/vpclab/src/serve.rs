//! The lab's process: brings everything up, follows EC2, ends it all.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal};

use crate::{
    account,
    backend::{self, Backend},
    config::LabConfig,
    ec2, fabric, fabric6,
    hotplug::{FabricNode, Hotplug, Macs},
    imds::{Faults, Metadata, NodeView, write_faults},
    namespaces::Namespaces,
    nd::Responder,
    nsenter,
    state::{CONTROL_PLANE, Node, State, folder, start_of},
};

/// The line that is printed once the lab is complete.
pub const READY: &str = "ready";

/// Runs a lab until SIGTERM, SIGINT or, if asked, the end of standard input.
pub fn serve(config: &LabConfig, until_eof: bool) -> anyhow::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    // Before any thread starts: all of them inherit it, one of them waits for the signals.
    signals.thread_block().context("cannot block signals")?;
    config.check()?;
    refuse_if_live(&config.name)?;
    let folder = folder(&config.name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let ended = run(config, until_eof, signals);
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    ended
}

/// A name can be used again once its lab has ended, however it ended.
fn refuse_if_live(name: &str) -> anyhow::Result<()> {
    if State::read(name).is_ok_and(|state| state.is_live()) {
        bail!("a lab named {name:?} is running already; `vpclab down --name {name}` ends it");
    }
    Ok(())
}

fn run(config: &LabConfig, until_eof: bool, signals: SigSet) -> anyhow::Result<()> {
    let folder = folder(&config.name);
    let vpc = Namespaces::start("vpc", false)?;
    let inet = Namespaces::start("inet", false)?;
    let peer = Namespaces::start("peer", false)?;
    let names = (0..config.nodes).map(|index| (format!("node{index}"), true));
    let instances: Vec<(String, Namespaces)> = names
        .chain(config.control_plane.then(|| (CONTROL_PLANE.to_owned(), false)))
        .map(|(name, is_node)| Namespaces::start(&name, is_node).map(|namespaces| (name, namespaces)))
        .collect::<anyhow::Result<_>>()?;
    if config.ipv6 {
        fabric6::prepare(vpc.pid, inet.pid, peer.pid)?;
    }
    fabric::base(vpc.pid, inet.pid, peer.pid)?;
    if config.ipv6 {
        fabric6::base(vpc.pid, inet.pid, peer.pid)?;
    }
    let mut ec2_process = config.ec2.start(vpc.pid, &folder)?;
    let (vpc_id, subnets) = nsenter::within(vpc.pid, || account::create_vpc(config.ipv6))??;
    let mut fabric_nodes = BTreeMap::new();
    let mut state = State {
        name: config.name.clone(),
        serve_pid: std::process::id(),
        serve_start: start_of(std::process::id()).unwrap_or_default(),
        vpc_pid: vpc.pid,
        inet_pid: inet.pid,
        peer_pid: peer.pid,
        localstack_pid: backend::pid(&ec2_process)?,
        ec2_endpoint: ec2::endpoint(),
        vpc_id: vpc_id.clone(),
        nodes: Vec::new(),
        control_plane: None,
    };
    for (index, (name, namespaces)) in instances.iter().enumerate() {
        let subnet = fabric::subnet_of(index, config.large_subnets);
        let (node, view) = nsenter::within(vpc.pid, || account::run_instance(config, index, &subnets[subnet]))??;
        let node = Node { name: name.clone(), pid: namespaces.pid, subnet_id: subnets[subnet].clone(), ..node };
        let view = NodeView { vpc_id: vpc_id.clone(), subnet, ..view };
        let public_address = node.public_address.clone();
        fabric_nodes.insert(node.instance_id.clone(), FabricNode { pid: namespaces.pid, view, public_address });
        if name == CONTROL_PLANE {
            state.control_plane = Some(node);
        } else {
            state.nodes.push(node);
        }
    }
    nsenter::within(vpc.pid, || account::attach_efas(config, &state.nodes))??;
    let metadata = Metadata::new(&config.name);
    write_faults(&config.name, &Faults::default())?;
    let places = subnets.iter().cloned().enumerate().map(|(place, id)| (id, place)).collect();
    let macs = match config.ec2 {
        Backend::LocalStack => Macs::Lab,
        Backend::Model => Macs::Ec2,
    };
    let responder = config.ipv6.then(|| Responder::start(vpc.pid)).transpose()?;
    let mut hotplug = Hotplug::new(vpc.pid, fabric_nodes, places, metadata.clone(), macs, responder);
    hotplug.follow()?;
    let listener = nsenter::within(vpc.pid, || TcpListener::bind("169.254.169.254:80"))??;
    thread::spawn(move || metadata.serve(&listener));
    let stop = Arc::new(AtomicBool::new(false));
    let follower = thread::spawn({
        let stop = stop.clone();
        move || hotplug.run(&stop)
    });
    state.write()?;
    println!("{READY}");
    wait_for_end(until_eof, signals);
    stop.store(true, Ordering::Relaxed);
    let _ = follower.join();
    drop((vpc, inet, peer, instances));
    // It died with the VPC's process 1.
    let _ = ec2_process.wait();
    Ok(())
}

fn wait_for_end(until_eof: bool, signals: SigSet) {
    let (sender, end) = mpsc::channel();
    if until_eof {
        let sender = sender.clone();
        thread::spawn(move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            let _ = sender.send(());
        });
    }
    thread::spawn(move || {
        let _ = signals.wait();
        let _ = sender.send(());
    });
    let _ = end.recv();
}
