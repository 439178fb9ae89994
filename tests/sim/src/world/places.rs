//! Where ENIs may be, as operators say it: by the tags of subnets, and by the node's ENIConfig.

use std::collections::BTreeSet;

use enid_ipamd::{EniConfig, Home, Placement, SubnetId};
use vpclab::model::EniTruth;

use crate::cloud::Cloud;

/// What operators have said.
#[derive(Default)]
pub struct Places {
    /// The primary's subnet.
    primary: String,
    /// Subnets that are tagged against ENIs, or lack the tag that they need, and since when.
    closed: Vec<(String, u64)>,
    /// When lists of subnets were asked for, and when each was or will be there. One may be older than a minute where EC2
    /// gives no other.
    lists: Vec<(u64, u64)>,
    config: Option<EniConfig>,
    is_configured: bool,
    told: bool,
}

impl Places {
    /// The subnets that a run needs in which ENIs are placed so.
    pub fn set_up(&mut self, cloud: &mut Cloud, placement: &Placement) {
        self.primary = cloud.subnet(0);
        match placement {
            Placement::Primary => {}
            Placement::Tagged { .. } => {
                cloud.add_subnets();
                self.closed = [1, 2].map(|number| (cloud.subnet(number), 0)).to_vec();
            }
            Placement::EniConfig => {
                cloud.add_subnets();
                self.is_configured = true;
                self.configure(cloud, 1, 0);
            }
        }
    }

    /// A subnet is tagged for or against ENIs, or its tag is gone.
    pub fn tag(&mut self, cloud: &mut Cloud, now: u64, number: u8, role: Option<bool>) {
        cloud.tag_subnet(now, number, role.map_or("", |takes| if takes { "1" } else { "0" }));
        let subnet = cloud.subnet(number);
        let takes = role.unwrap_or(subnet == self.primary);
        let is_closed = self.closed.iter().any(|(closed, _)| *closed == subnet);
        if takes {
            self.closed.retain(|(closed, _)| *closed != subnet);
        } else if !is_closed {
            self.closed.push((subnet, now));
        }
    }

    /// The node's ENIConfig names this subnet, and security groups of its own unless their number is 0.
    pub fn configure(&mut self, cloud: &Cloud, number: u8, groups: u8) {
        let groups = (groups > 0).then(|| format!("sg-pods-{groups}")).into_iter().collect();
        self.config = Some(EniConfig { name: "zone".into(), subnet: SubnetId(cloud.subnet(number).into()), groups });
        self.told = false;
    }

    /// EC2 lists the subnets, and the answer is there at `until`.
    pub fn list(&mut self, now: u64, until: u64) {
        self.lists.push((now, until));
    }

    /// It is gone.
    pub fn remove(&mut self) {
        self.config = None;
        self.told = false;
    }

    /// A new run of the daemon has heard nothing.
    pub fn forget_told(&mut self) {
        self.told = false;
        self.lists.clear();
    }

    /// What the daemon has not heard yet.
    pub fn news(&mut self) -> Option<Result<EniConfig, String>> {
        let is_news = self.is_configured && !std::mem::replace(&mut self.told, true);
        is_news.then(|| self.config.clone().ok_or_else(|| "there is no ENIConfig \"zone\"".to_owned()))
    }

    /// Why an ENI must not be created there.
    pub fn forbids(&self, now: u64, placement: &Placement, home: &Home) -> Option<String> {
        let subnet = home.subnet.as_ref().map_or(self.primary.as_str(), |subnet| &subnet.0);
        match placement {
            Placement::Primary => None,
            Placement::Tagged { .. } => {
                let known = self.lists.iter().filter(|(_, until)| *until <= now).map(|(asked, _)| *asked).max();
                let closed = self.closed.iter().find(|(closed, since)| closed == subnet && known > Some(*since));
                closed.map(|_| format!("an ENI is created in {subnet}, whose tags forbid it"))
            }
            Placement::EniConfig => {
                let config = self.config.as_ref().filter(|_| self.told);
                let is_wrong = config.is_some_and(|config| &*config.subnet.0 != subnet);
                is_wrong.then(|| format!("an ENI is created in {subnet}, and the ENIConfig names another subnet"))
            }
        }
    }

    /// Whether the security groups of ENIs in a subnet are certainly the primary's.
    pub fn follow_primary(&self, subnet: &str) -> bool {
        match &self.config {
            Some(config) => config.groups.is_empty() && &*config.subnet.0 == subnet,
            None => !self.is_configured && self.primary == subnet,
        }
    }

    /// Whether an ENI is not of the kind that the ENIConfig asks for.
    pub fn is_of_old_kind(&self, eni: &EniTruth) -> bool {
        let Some(config) = &self.config else { return false };
        let groups: BTreeSet<String> = eni.groups.iter().cloned().collect();
        *config.subnet.0 != eni.subnet || (!config.groups.is_empty() && config.groups != groups)
    }
}
