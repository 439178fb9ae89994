//! `vpclab up|down|status|exec NODE -- CMD`: a VPC on one machine.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::process::CommandExt,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use vpclab::{
    Backend, Lab, LabConfig, State, check_name, folder,
    model::{Model, Options, http::Server},
    namespaces, program, serve, wait_until,
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
}

impl Size {
    fn of(self, name: &str) -> LabConfig {
        let Size { nodes, instance_type, ec2, large_subnets, ipv6, efa_only_cards } = self;
        LabConfig { name: name.to_owned(), nodes, instance_type, ec2, large_subnets, ipv6, efa_only_cards }
    }
}

#[derive(clap::Args)]
struct Account {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:4566")]
    listen: SocketAddr,
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
    /// Run a command on a node, or at vpc, inet or peer
    Exec {
        #[command(flatten)]
        name: Name,
        /// node0, node1, … vpc, inet, peer
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
        Verb::Up { name, size } => up(&size.of(&name.name))?,
        Verb::Down(name) => down(&name.name)?,
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
    Server::new(Model::new(options), account.latency).serve(&listener);
    Ok(())
}

fn up(config: &LabConfig) -> anyhow::Result<()> {
    config.check()?;
    let name = config.name.as_str();
    if State::read(name).is_ok_and(|state| state.is_live()) {
        bail!("a lab named {name:?} is running already; `vpclab down --name {name}` ends it");
    }
    let log = std::env::temp_dir().join(format!("vpclab-{name}.log"));
    let out = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut child = Command::new("setsid")
        .arg(program()?)
        .args(config.serve_args())
        .stdin(Stdio::null())
        .stdout(out.try_clone().context("cannot share the log")?)
        .stderr(out)
        .spawn()
        .context("cannot run setsid (util-linux)")?;
    let mut ended = false;
    let waited = wait_until(Duration::from_secs(150), || {
        ended = child.try_wait().is_ok_and(|status| status.is_some());
        ended || State::read(name).is_ok_and(|state| state.is_live())
    });
    let output = fs::read_to_string(&log).unwrap_or_default();
    let _ = fs::remove_file(&log);
    if ended {
        bail!("the lab did not come up: {}", output.trim().trim_start_matches("vpclab: "));
    }
    waited.context("the lab did not come up")?;
    status(name)
}

fn down(name: &str) -> anyhow::Result<()> {
    check_name(name)?;
    let folder = folder(name);
    if let Ok(state) = State::read(name)
        && state.is_live()
    {
        let pid = state.serve_pid.to_string();
        Command::new("kill").arg(&pid).status().context("cannot run kill")?;
        if wait_until(Duration::from_secs(20), || !state.is_live()).is_err() {
            Command::new("kill").args(["-9", &pid]).status().context("cannot run kill")?;
            wait_until(Duration::from_secs(5), || !state.is_live())?;
        }
    }
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
        }
        _ => {}
    }
    let _ = fs::remove_dir("/run/vpclab"); // the last lab takes the folder along
    println!("lab {name} is down");
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
    for node in &state.nodes {
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
