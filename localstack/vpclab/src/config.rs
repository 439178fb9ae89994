//! What a lab should have, in code and as arguments of `vpclab serve`.

use anyhow::bail;

use crate::{backend::Backend, model, state};

/// What a lab should have.
#[derive(Clone, Debug)]
pub struct LabConfig {
    /// Labs of different names are independent.
    pub name: String,
    /// How many nodes.
    pub nodes: usize,
    /// EC2 instance type of all nodes.
    pub instance_type: String,
    /// What is used as EC2.
    pub ec2: Backend,
    /// Nodes are in subnets of 8,192 addresses, not of 256.
    pub large_subnets: bool,
    /// The VPC has IPv6 ranges, and each node an IPv6 address of its own. Only with the model: LocalStack has
    /// no IPv6 prefixes.
    pub ipv6: bool,
    /// Network cards of each node that have an EFA-only ENI at device index 1. Only with the model: LocalStack
    /// has no cards.
    pub efa_only_cards: Vec<u32>,
    /// One instance more, [`crate::CONTROL_PLANE`], that is no node: where an API server has its place in the VPC.
    pub control_plane: bool,
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
            efa_only_cards: Vec::new(),
            control_plane: false,
        }
    }
}

impl LabConfig {
    /// Whether there can be such a lab; the error names the reason.
    pub fn check(&self) -> anyhow::Result<()> {
        state::check_name(&self.name)?;
        if self.ipv6 && self.ec2 == Backend::LocalStack {
            bail!("a lab with IPv6 needs the model of EC2 (--ec2 model): LocalStack has no IPv6 prefixes");
        }
        if !self.efa_only_cards.is_empty() && self.ec2 == Backend::LocalStack {
            bail!("EFA-only ENIs need the model of EC2 (--ec2 model): LocalStack has no network cards");
        }
        let mut cards = self.efa_only_cards.clone();
        cards.sort_unstable();
        if let Some(twice) = cards.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("network card {} can have one EFA-only ENI at device index 1, not two", twice[0]);
        }
        // A type that the model does not know is refused by the model itself.
        let known = model::limits(&self.instance_type).map(|limits| limits.cards.len());
        if let (Some(known), Some(card)) = (known, cards.last())
            && usize::try_from(*card).is_ok_and(|card| card >= known)
        {
            bail!("{} has {known} network cards, counted from 0, so none is card {card}", self.instance_type);
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
        args.extend(self.control_plane.then_some("--control-plane"));
        let mut args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        for card in &self.efa_only_cards {
            args.extend(["--efa-only-card".to_owned(), card.to_string()]);
        }
        args
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

    #[test]
    fn efa_only_enis_are_on_cards_that_there_are() {
        let config = |cards: &[u32], ec2: Backend| LabConfig {
            instance_type: "c6in.32xlarge".to_owned(),
            efa_only_cards: cards.to_vec(),
            ec2,
            ..LabConfig::default()
        };
        assert!(config(&[0, 1], Backend::Model).check().is_ok());
        assert!(config(&[0, 1], Backend::Model).serve_args().ends_with(&["--efa-only-card", "1"].map(str::to_owned)));
        for (cards, ec2, why) in [
            (&[1][..], Backend::LocalStack, "--ec2 model"),
            (&[2], Backend::Model, "c6in.32xlarge has 2 network cards"),
            (&[1, 0, 1], Backend::Model, "card 1 can have one"),
        ] {
            let refused = config(cards, ec2).check().unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
    }
}
