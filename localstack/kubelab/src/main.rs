//! `kubelab up|down|status|shell|exec|join|reboot`: a Kubernetes cluster on one machine, with the networking of EKS.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::{Parser, Subcommand};
use kubelab::{Cluster, ClusterConfig, Cni, Families, Node, Parts, boot, check_room, tell_boot_id};
use vpclab::{Lab, State};

#[derive(Parser)]
#[command(version, about = "A Kubernetes cluster on one machine, in a VPC made of namespaces")]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(clap::Args)]
struct Name {
    /// Clusters of different names are independent
    #[arg(long, default_value = "cluster")]
    name: String,
}

#[derive(clap::Args)]
struct Wanted {
    #[command(flatten)]
    name: Name,
    /// How many nodes it begins with
    #[arg(long, default_value_t = 2)]
    nodes: usize,
    /// How many more instances there are, whose nodes join by `kubelab join`
    #[arg(long, default_value_t = 0)]
    later: usize,
    /// EC2 instance type of the nodes
    #[arg(long, default_value = "m5.xlarge")]
    instance_type: String,
    /// Use LocalStack as EC2 instead of the model
    #[arg(long)]
    localstack: bool,
    /// Address families of pods and Services
    #[arg(long, value_enum, default_value_t)]
    families: Families,
    /// Who gives pods their addresses
    #[arg(long, value_enum, default_value_t)]
    cni: Cni,
    /// Mode of kube-proxy, node by node: iptables, nftables or none
    #[arg(long = "proxy", value_name = "MODE", default_values = ["iptables", "nftables"])]
    proxies: Vec<String>,
    /// Pods that a node takes at most
    #[arg(long, default_value_t = 58)]
    max_pods: u32,
    /// A file of values for Enid's chart; may be repeated
    #[arg(long)]
    values: Vec<PathBuf>,
}

impl Wanted {
    fn config(self) -> ClusterConfig {
        let Wanted { name, nodes, later, instance_type, localstack, families, cni, proxies, max_pods, values } = self;
        let Name { name } = name;
        ClusterConfig { name, nodes, later, instance_type, localstack, families, cni, proxies, max_pods, values }
    }
}

#[derive(Subcommand)]
enum Verb {
    /// Bring a cluster up and leave it running
    Up(Wanted),
    /// Take a cluster down with its lab, and clean up after one that was killed
    Down(Name),
    /// Show the nodes, and how to look around
    Status(Name),
    /// A shell, or a command, where kubectl and helm reach the API server
    Shell {
        #[command(flatten)]
        name: Name,
        /// The command and its arguments
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Run a command on a node
    Exec {
        #[command(flatten)]
        name: Name,
        /// node0, node1, …
        node: String,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Boot the node of an instance for the first time (`up --later`); it registers by itself
    Join {
        #[command(flatten)]
        name: Name,
        /// node2, node3, …
        node: String,
    },
    /// End a node as a loss of power does, and boot it again; its ENIs stay
    Reboot {
        #[command(flatten)]
        name: Name,
        /// node0, node1, …
        node: String,
    },
    #[command(hide = true)]
    Boot { folder: PathBuf },
    #[command(hide = true)]
    ContainerHook,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kubelab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Up(wanted) => up(wanted.config()),
        Verb::Down(Name { name }) => down(&name),
        Verb::Status(Name { name }) => status(&Cluster::attach(&name)?),
        Verb::Shell { name, command } => {
            let shell = || std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned());
            let (program, arguments) = match command.split_first() {
                Some((program, arguments)) => (program.clone(), arguments.to_vec()),
                None => (shell(), Vec::new()),
            };
            let error = Cluster::attach(&name.name)?.command(Path::new(&program))?.args(arguments).exec();
            Err(error).with_context(|| format!("cannot run {program}"))
        }
        Verb::Exec { name, node, command } => {
            let error = node_of(&Cluster::attach(&name.name)?, &node)?.command(&command[0])?.args(&command[1..]).exec();
            Err(error).with_context(|| format!("cannot run {command:?}"))
        }
        Verb::Join { name, node } => {
            let node = node_of(&Cluster::attach(&name.name)?, &node)?;
            ensure!(!node.has_booted(), "{} has joined already; `kubelab reboot` boots it again", node.name);
            node.boot()
        }
        Verb::Reboot { name, node } => node_of(&Cluster::attach(&name.name)?, &node)?.reboot(),
        Verb::Boot { folder } => boot(&folder),
        Verb::ContainerHook => tell_boot_id(),
    }
}

fn node_of(cluster: &Cluster, name: &str) -> anyhow::Result<Node> {
    let nodes = cluster.nodes()?;
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    let found = nodes.iter().find(|node| node.name == name);
    found.cloned().with_context(|| format!("there is no {name:?}; there are {}", names.join(", ")))
}

fn up(config: ClusterConfig) -> anyhow::Result<()> {
    config.check()?;
    check_room()?;
    Parts::find()?;
    let name = config.name.clone();
    if State::read(&name).is_ok_and(|state| state.is_live()) {
        bail!("a lab or cluster named {name:?} is running already; `kubelab down --name {name}` ends it");
    }
    // What a cluster left that was killed together with its lab.
    Cluster::down(&name)?;
    let mut tell = |what: &str, took: Duration| {
        println!("{:6.1} s  {what}", took.as_secs_f32());
        let _ = std::io::stdout().flush();
    };
    let started = std::time::Instant::now();
    vpclab::up(&config.lab())?;
    tell("the lab is up", started.elapsed());
    let raised = Cluster::raise(config, Lab::attach(&name)?, &mut tell);
    let cluster =
        raised.with_context(|| format!("what is there so far goes on; `kubelab down --name {name}` ends it"))?;
    println!();
    status(&cluster)
}

fn down(name: &str) -> anyhow::Result<()> {
    vpclab::down(name)?;
    Cluster::down(name)?;
    println!("cluster {name} is down");
    Ok(())
}

fn status(cluster: &Cluster) -> anyhow::Result<()> {
    print!("{}", cluster.kubectl(&["get", "nodes", "-o", "wide"])?);
    let config = cluster.config();
    let name = match config.name.as_str() {
        "cluster" => String::new(),
        name => format!(" --name {name}"),
    };
    let program = std::env::current_exe().context("cannot tell which program this is")?;
    let program = program.display();
    println!(
        "
KUBECONFIG={}
The API server is an address of the VPC. From this machine it is reached by
  {program} shell{name}                      a shell with kubectl and helm in its path
  {program} shell{name} -- kubectl -n kube-system exec ds/enid -c enid -- enid status
On a node:
  {program} exec{name} node0 -- ip rule
  {program} reboot{name} node0",
        cluster.kubeconfig().display()
    );
    Ok(())
}
