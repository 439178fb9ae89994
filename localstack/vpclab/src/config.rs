//! What a lab should have, in code and as `vpclab serve` is told.

use anyhow::bail;

use crate::{Backend, serve};

/// What a lab should have.
#[derive(Clone, Debug)]
pub struct LabConfig {
    /// Labs of different names do not meet.
    pub name: String,
    /// How many nodes.
    pub nodes: usize,
    /// EC2 instance type of all nodes.
    pub instance_type: String,
    /// What plays EC2.
    pub ec2: Backend,
    /// Nodes live in subnets of 8,192 addresses, not of 256.
    pub large_subnets: bool,
    /// The VPC has IPv6 ranges, and each node an IPv6 address of its own. Only with the model: LocalStack has
    /// no IPv6 prefixes.
    pub ipv6: bool,
}

impl Default for LabConfig {
    fn default() -> Self {
        LabConfig {
            name: format!("lab{}", std::process::id()),
            nodes: 2,
            instance_type: "m5.large".to_owned(),
            ec2: Backend::default(),
            large_subnets: false,
            ipv6: false,
        }
    }
}

impl LabConfig {
    /// Whether there can be such a lab; the error says why not.
    pub fn check(&self) -> anyhow::Result<()> {
        serve::check_name(&self.name)?;
        if self.ipv6 && self.ec2 == Backend::LocalStack {
            bail!("a lab with IPv6 needs the model of EC2 (--ec2 model): LocalStack has no IPv6 prefixes");
        }
        Ok(())
    }

    /// The command line of `vpclab serve` for this lab.
    pub fn serve_args(&self) -> Vec<String> {
        let nodes = self.nodes.to_string();
        let mut args = vec!["serve", "--name", &self.name, "--nodes", &nodes];
        args.extend(["--instance-type", &self.instance_type, "--ec2", self.ec2.as_str()]);
        args.extend(self.large_subnets.then_some("--large-subnets"));
        args.extend(self.ipv6.then_some("--ipv6"));
        args.into_iter().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_that_cannot_be_is_refused() {
        let config = LabConfig { ipv6: true, ..LabConfig::default() };
        assert!(config.check().unwrap_err().to_string().contains("--ec2 model"));
        assert!(LabConfig { ec2: Backend::Model, ..config.clone() }.check().is_ok());
        assert!(config.serve_args().contains(&"--ipv6".to_owned()));
        assert!(LabConfig::default().check().is_ok());
    }
}
