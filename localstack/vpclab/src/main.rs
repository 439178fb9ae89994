//! `vpclab up|down|status|exec NODE -- CMD`: a VPC on one machine.

use std::{
    net::{SocketAddr, TcpListener},
    os::unix::process::CommandExt,
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use vpclab::{
    Backend, Lab, LabConfig, check_name,
    model::{Model, Options, http::Server},
    namespaces, serve,
};

#[derive(Parser)]
#[command(version, about = "A VPC on one machine: EC2 by LocalStack or a model, IMDSv2, nodes as namespaces")]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(clap::Args)]
struct Name {
    /// Labs of different names are independent
    #[arg(long, default_value = "lab")]
    name: String,
}

#[derive(clap::Args)]
struct Size {
    /// How many nodes
    #[arg(long, default_value_t = 2)]
    nodes: usize,
    /// EC2 instance type of the nodes
    #[arg(long, default_value = "m5.large")]
    instance_type: String,
    /// What is used as EC2
    #[arg(long, value_enum, default_value_t)]
    ec2: Backend,
    /// Put the nodes into subnets of 8,192 addresses
    #[arg(long)]
    large_subnets: bool,
    /// Give the VPC IPv6 ranges and each node an IPv6 address; needs --ec2 model
    #[arg(long)]
    ipv6: bool,
    /// Attach an EFA-only ENI to this network card of each node; may be repeated; needs --ec2 model
    #[arg(long = "efa-only-card", value_name = "CARD")]
    efa_only_cards: Vec<u32>,
    /// Run one instance more, control-plane, that is no node
    #[arg(long)]
    control_plane: bool,
}

impl Size {
    fn of(self, name: &str) -> LabConfig {
        let Size { nodes, instance_type, ec2, large_subnets, ipv6, efa_only_cards, control_plane } = self;
        let name = name.to_owned();
        LabConfig { name, nodes, instance_type, ec2, large_subnets, ipv6, efa_only_cards, control_plane }
    }
}

#[derive(clap::Args)]
struct Account {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:4566")]
    listen: SocketAddr,
    /// Where to listen as the EKS Pod Identity agent, too
    #[arg(long)]
    pod_identity: Option<SocketAddr>,
    /// Where chance comes from
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Limit calls as EC2 does
    #[arg(long)]
    throttling: bool,
    /// Let calls take their time
    #[arg(long)]
    latency: bool,
    /// How long EC2 shows what was, in milliseconds
    #[arg(long, default_value_t = 0)]
    lag_ms: u64,
}

#[derive(Subcommand)]
enum Verb {
    /// Bring a lab up and leave it running
    Up {
        #[command(flatten)]
        name: Name,
        #[command(flatten)]
        size: Size,
    },
    /// Take a lab down, and clean up after one that was killed
    Down(Name),
    /// Show nodes and what the VPC dropped
    Status(Name),
    /// Run a command on a node, or at control-plane, vpc, inet or peer
    Exec {
        #[command(flatten)]
        name: Name,
        /// node0, node1, … control-plane, vpc, inet, peer
        node: String,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run the model of EC2 alone, without a lab
    Ec2(Account),
    #[command(hide = true)]
    Serve {
        #[command(flatten)]
        name: Name,
        #[command(flatten)]
        size: Size,
        #[arg(long)]
        until_eof: bool,
    },
    #[command(hide = true)]
    Init {
        host_name: String,
        #[arg(long)]
        node: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("vpclab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Up { name, size } => {
            vpclab::up(&size.of(&name.name))?;
            status(&name.name)?;
        }
        Verb::Down(name) => {
            vpclab::down(&name.name)?;
            println!("lab {} is down", name.name);
        }
        Verb::Status(name) => status(&name.name)?,
        Verb::Exec { name, node, command } => {
            let error = Lab::attach(&name.name)?.command(&node, &command[0])?.args(&command[1..]).exec();
            return Err(error).with_context(|| format!("cannot run {command:?}"));
        }
        Verb::Serve { name, size, until_eof } => {
            serve::serve(&size.of(&name.name), until_eof)?;
        }
        Verb::Ec2(account) => ec2(&account)?,
        Verb::Init { host_name, node } => namespaces::init(&host_name, node)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn ec2(account: &Account) -> anyhow::Result<()> {
    let listener = TcpListener::bind(account.listen).with_context(|| format!("cannot listen on {}", account.listen))?;
    let ec2_lag_ms = (account.lag_ms, account.lag_ms);
    let options = Options { seed: account.seed, throttling: account.throttling, ec2_lag_ms, ..Options::default() };
    println!("http://{}", listener.local_addr().context("the listener has no address")?);
    let server = Server::new(Model::new(options), account.latency);
    if let Some(address) = account.pod_identity {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        let server = server.clone();
        std::thread::spawn(move || server.serve(&listener));
    }
    server.serve(&listener);
    Ok(())
}

fn status(name: &str) -> anyhow::Result<()> {
    check_name(name)?;
    let lab = Lab::attach(name)?;
    let state = lab.state();
    if !state.is_live() {
        bail!("the lab {name:?} was killed; `vpclab down --name {name}` cleans up");
    }
    println!("lab {name}: {} with EC2 at {}", state.vpc_id, state.ec2_endpoint);
    for node in state.instances() {
        let vpclab::Node { name, instance_id, address, public_address, address_v6, .. } = node;
        let v6 = address_v6.as_ref().map(|address| format!("  {address}")).unwrap_or_default();
        println!("  {name}  {instance_id}  {address}  public {public_address}{v6}");
    }
    let drops = lab.drops()?;
    println!(
        "dropped: {} with a foreign source, {} private ones towards the Internet",
        drops.foreign_source, drops.inet_private
    );
    Ok(())
}
