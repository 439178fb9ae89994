//! A running lab as tests, the demo and the command line use it.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};

use crate::{
    config::LabConfig,
    ec2,
    fabric::{self, Drops},
    imds::{self, Faults},
    model, nsenter,
    program::program,
    serve,
    state::{Node, State},
    wait::wait_until,
};

/// A running lab. Dropping one that was brought up by [`Lab::up`] takes it down.
pub struct Lab {
    state: State,
    serving: Option<(Child, Option<ChildStdin>)>,
}

impl Lab {
    /// Brings a lab up and waits until it is complete.
    pub fn up(config: &LabConfig) -> anyhow::Result<Self> {
        config.check()?;
        let mut child = Command::new(program()?)
            .args(config.serve_args())
            .arg("--until-eof")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start vpclab")?;
        let stdin = child.stdin.take();
        let mut lines = BufReader::new(child.stdout.take().context("vpclab has no output")?).lines();
        match lines.next() {
            Some(Ok(line)) if line == serve::READY => {}
            _ => {
                let status = child.wait().context("cannot wait for vpclab")?;
                bail!("the lab did not come up ({status}); its own message stands above");
            }
        }
        Ok(Lab { state: State::read(&config.name)?, serving: Some((child, stdin)) })
    }

    /// A lab that another process serves.
    pub fn attach(name: &str) -> anyhow::Result<Self> {
        Ok(Lab { state: State::read(name)?, serving: None })
    }

    /// What it is made of.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// One of its nodes.
    pub fn node(&self, index: usize) -> &Node {
        &self.state.nodes[index]
    }

    /// A command that will run at a place: a node's name, `vpc`, `inet` or `peer`.
    pub fn command(&self, place: &str, program: &str) -> anyhow::Result<Command> {
        let pid = self.state.pid_of(place)?;
        Ok(nsenter::command(pid, program))
    }

    /// Runs a command at a place and returns what it printed; an error contains it.
    pub fn run(&self, place: &str, program: &str, args: &[&str]) -> anyhow::Result<String> {
        nsenter::output(self.command(place, program)?.args(args))
    }

    /// What the VPC has refused so far.
    pub fn drops(&self) -> anyhow::Result<Drops> {
        fabric::drops(self.state.vpc_pid)
    }

    /// Asks EC2 by hand.
    pub fn ec2(&self, action: &str, parameters: &[(&str, &str)]) -> anyhow::Result<String> {
        nsenter::within(self.state.vpc_pid, || ec2::call(action, parameters))?
    }

    /// Ends LocalStack or the model, as if EC2 could not be reached any more.
    pub fn kill_ec2(&self) -> anyhow::Result<()> {
        let ended = nsenter::output(Command::new("kill").args(["-9", &self.state.localstack_pid.to_string()]));
        ended?;
        wait_until(Duration::from_secs(5), || self.ec2("DescribeVpcs", &[]).is_err())
    }

    /// Changes what goes wrong with EC2. Error: it is LocalStack, where nothing can be made to.
    pub fn set_ec2(&self, faults: &model::Faults) -> anyhow::Result<()> {
        let text = serde_json::to_string(faults).context("cannot write JSON")?;
        nsenter::within(self.state.vpc_pid, || ec2::control("/faults", &text))?
    }

    /// There is this role from now on. Error: EC2 is LocalStack, which has none.
    pub fn set_role(&self, role: &serde_json::Value) -> anyhow::Result<()> {
        nsenter::within(self.state.vpc_pid, || ec2::control("/role", &role.to_string()))?
    }

    /// Lets others take addresses of a subnet. Error: EC2 is LocalStack, whose subnets never fill.
    pub fn occupy(&self, subnet_id: &str, addresses: &[std::net::Ipv4Addr]) -> anyhow::Result<()> {
        self.fill("/occupy", subnet_id, addresses)
    }

    /// Lets others give addresses of a subnet back; those that they do not have are skipped.
    pub fn vacate(&self, subnet_id: &str, addresses: &[std::net::Ipv4Addr]) -> anyhow::Result<()> {
        self.fill("/vacate", subnet_id, addresses)
    }

    fn fill(&self, path: &str, subnet_id: &str, addresses: &[std::net::Ipv4Addr]) -> anyhow::Result<()> {
        let text = serde_json::json!({ "subnet": subnet_id, "addresses": addresses }).to_string();
        nsenter::within(self.state.vpc_pid, || ec2::control(path, &text))?
    }

    /// Calls so far, by action. Error: EC2 is LocalStack, which does not count.
    pub fn ec2_counts(&self) -> anyhow::Result<BTreeMap<String, model::Counted>> {
        nsenter::within(self.state.vpc_pid, ec2::counts)?
    }

    /// All ENIs of the account, as they are.
    pub fn enis(&self) -> anyhow::Result<Vec<ec2::Eni>> {
        nsenter::within(self.state.vpc_pid, ec2::enis)?
    }

    /// Changes how instance metadata behaves.
    pub fn set_imds(&self, faults: &Faults) -> anyhow::Result<()> {
        imds::write_faults(&self.state.name, faults)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some((mut child, stdin)) = self.serving.take() {
            drop(stdin); // end of file ends it
            let _ = child.wait();
        }
    }
}
