//! The command line: which commands there are, and their flags.

use clap::{Arg, ArgAction, Command};

use crate::{print::Output, settings::SETTINGS};

/// All of it.
pub fn cli() -> Command {
    Command::new("enid")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Native VPC addresses for pods: the node daemon and its commands")
        .after_help(EXIT_CODES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(of_the_pod())
        .subcommands(of_the_node())
        .subcommands(reading())
        .subcommands(elsewhere())
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done; for health and doctor: nothing is wrong
  1  it failed, or something is wrong, and what is printed says what
  2  the command line is not understood
  3  no daemon answers";

/// What the chart's containers run.
fn of_the_pod() -> [Command; 3] {
    [
        Command::new("agent").about("Run the node daemon").args(settings(false)),
        Command::new("init").about("Install the plugin into the runtime's folder").args(settings(false)),
        Command::new("untaint").about("Take the taint of ENID_NO_ADDRESSES_TAINT off this node").args(settings(true)),
    ]
}

/// What changes a node.
fn of_the_node() -> [Command; 4] {
    [
        Command::new("uninstall")
            .about("Remove every trace from a node that has no pods any more; no daemon may run")
            .args(settings(true))
            .arg(switch("enis", "Give the node's ENIs back to EC2, too")),
        Command::new("takeover")
            .about("What taking this node over from Amazon's VPC CNI would do; the daemon does it")
            .args(settings(true))
            .arg(Output::flag())
            .arg(switch("check", "Change nothing; exit 1 if something stands against it").required(true)),
        Command::new("handback")
            .about("Give this node back to Amazon's VPC CNI under running pods; the daemon waits from then on")
            .args(settings(true))
            .arg(switch("cancel", "Let the daemon serve a node that was given back, once Amazon's has gone from it")),
        admin(),
    ]
}

/// What an operator can have the daemon do.
fn admin() -> Command {
    let order = |name: &'static str, about: &'static str| {
        Command::new(name).about(about).args(settings(true)).arg(Output::flag())
    };
    let what = |name: &'static str| Arg::new("what").value_name(name).required(true);
    let frozen = || what("WHAT").value_parser(["releases", "writes"]).help("What goes to EC2");
    let eni = || what("ENI").help("Such as eni-0123456789abcdef0");
    Command::new("admin")
        .about("Have the daemon do something, or keep it from it; it takes orders where ENID_ADMIN is true")
        .subcommand_required(true)
        .subcommands([
            order("freeze", "Give nothing back to EC2 (releases), or change nothing there at all (writes)")
                .arg(frozen()),
            order("unfreeze", "Lift that").arg(frozen()),
            order("exclude", "Give new pods no address of an ENI; a secondary one is given back after its last pod")
                .arg(eni()),
            order("include", "Lift that").arg(eni()),
            order("release", "Release what the pool could do without now, not after a minute"),
            order("reconcile", "Compare kernel, metadata and EC2 with the daemon's state now"),
        ])
}

/// What reads from the daemon.
fn reading() -> [Command; 10] {
    let reading = |name: &'static str, about: &'static str| {
        Command::new(name).about(about).args(settings(true)).arg(Output::flag())
    };
    [
        reading("status", "Whether all is well, what is wrong, and what is going on"),
        reading("enis", "The ENIs of this node"),
        reading("pods", "The pods and their addresses"),
        reading("plan", "What is being done, what comes next and why, and what is waited for"),
        reading("why", "The story of one pod: bound, asked, refused, wired, deleted; also when it has gone").arg(
            Arg::new("pod")
                .value_name("NAMESPACE/POD")
                .required(true)
                .help("The pod; its namespace is default if left out"),
        ),
        reading("events", "The last operations, with what each phase took")
            .arg(switch("follow", "Go on with those that end from now on").short('f')),
        reading("doctor", "What is wrong on this node, and what to do: daemon, kernel, metadata and EC2 compared"),
        reading("explain", "Which rule, table, ENI and translation a packet takes, and whether the kernel agrees")
            .arg(Arg::new("source").value_name("SOURCE").required(true).help("A pod of this node, or an address"))
            .arg(
                Arg::new("destination")
                    .value_name("DESTINATION")
                    .required(true)
                    .help("An address, or a pod of this node"),
            )
            .arg(switch("probe", "Send a UDP packet as the source would, and follow it through the host's tables"))
            .arg(
                Arg::new("port")
                    .long("port")
                    .value_name("PORT")
                    .value_parser(clap::value_parser!(u16).range(1..))
                    .help("The same with a TCP connection to this port"),
            ),
        reading("config", "Every setting, its value and what gives it"),
        reading("health", "Exit 0 while the daemon serves").arg(switch("ready", "Exit 0 only while STATUS says yes")),
    ]
}

/// What draws, what makes a file, and what needs no daemon and no node.
fn elsewhere() -> [Command; 5] {
    [
        Command::new("top").about("The node as it changes: pool, ADDs, EC2 calls").args(settings(true)).arg(
            Arg::new("times").long("times").value_parser(clap::value_parser!(u64)).help("End after so many looks"),
        ),
        Command::new("bundle")
            .about("A support archive without secrets (tar, gzip): daemon, kernel, stories, and what the simulator replays")
            .args(settings(true))
            .arg(Arg::new("file").long("file").value_name("FILE").default_value("-").help("Where to; - is stdout")),
        Command::new("max-pods")
            .about("How many pods an instance type can have addresses for, as the kubelet's max-pods; needs no network")
            .args(settings(true))
            .arg(Output::flag())
            .arg(
                Arg::new("instance-type")
                    .long("instance-type")
                    .value_name("TYPE")
                    .help("Such as m5.large; this instance's if left out"),
            )
            .arg(
                Arg::new("cap").long("cap").value_name("PODS").value_parser(clap::value_parser!(u64)).help(
                    "Never more than this; Kubernetes recommends 110, or 250 on instances with more than 30 vCPUs",
                ),
            ),
        Command::new("completions").about("Completions for a shell, on stdout").arg(
            Arg::new("shell").required(true).value_parser(clap::value_parser!(clap_complete::Shell)).help("The shell"),
        ),
        Command::new("man").about("The manual page, on stdout: enid man | man -l -"),
    ]
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// Settings as flags. Commands other than the daemon's take them, since they look in the same folders, and do not list them.
fn settings(hidden: bool) -> impl Iterator<Item = Arg> {
    SETTINGS.iter().map(move |setting| {
        let default = if setting.default.is_empty() { "none" } else { setting.default };
        let help = format!("{} [default: {default}]", setting.help);
        Arg::new(setting.flag).long(setting.flag).value_name(setting.name).help(help).hide(hidden)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_well_formed() {
        super::cli().debug_assert();
    }
}
