//! EC2's networking part as a value: one account in one region, limits and delays and refusals included.
//!
//! Everything is decided by the calls, their times and a seed: no clock, no threads, no I/O. Time is virtual,
//! in milliseconds, passed in by the caller and never going back. A call's effect is there when it is made;
//! what it shows to others may come later ([`Options::ec2_lag_ms`], [`Options::imds_lag_ms`]), and so may its
//! answer ([`Reply::takes_ms`]).
//!
//! Rules come from the Amazon EC2 API Reference and User Guide; where another source or a guess is behind one,
//! it is named. Not modelled: security groups' content, public and elastic addresses, subnet reservations,
//! trunk ENIs, EFAs that carry IP, quotas other than that of ENIs per region.

mod access;
mod api;
mod assign;
mod attach;
mod authorize;
mod buckets;
mod describe;
mod eni;
mod faults;
mod filter;
pub mod http;
mod instance;
mod lag;
mod policy;
mod shown;
mod space;
#[cfg(test)]
mod tests;
mod types;

use std::{collections::BTreeMap, net::Ipv4Addr};

use fastrand::Rng;
use ipnet::{Ipv4Net, Ipv6Net};

pub use access::{ACCOUNT, Role};
pub use api::{
    Answer, ApiError, AttachmentStatus, AttachmentTruth, EniStatus, EniTruth, ImdsEni, InstanceState, InstanceTruth,
    InterfaceType, Outcome, Reply, Request, SubnetTruth,
};
pub use buckets::bucket;
pub use faults::Faults;
pub use policy::{Access, Policy, Statement};
pub use types::{TypeLimits, limits};

use access::Identities;
use buckets::Buckets;
use shown::Shown;
use space::Space;

/// How the account and the service behave all the time; what goes wrong now and then is in [`Faults`].
/// Ranges of milliseconds include both ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Where chance comes from: same seed and same calls, same answers.
    pub seed: u64,
    /// Whether calls are limited as [documented](https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html).
    pub throttling: bool,
    /// A refused call still costs a token.
    pub charge_refused: bool,
    /// The part of every bucket that other callers of the account use up, 0.0 to 1.0.
    pub others_share: f64,
    /// How long an ordinary call takes.
    pub latency_ms: (u64, u64),
    /// How long "attaching" lasts; detaching and shutting down take as long.
    pub attach_ms: (u64, u64),
    /// How long metadata goes on showing what was.
    pub imds_lag_ms: (u64, u64),
    /// How long EC2 goes on showing what was, and does not know what is new.
    pub ec2_lag_ms: (u64, u64),
    /// ENIs per region; 5000 is EC2's default ("Amazon VPC quotas").
    pub eni_quota: usize,
}

impl Default for Options {
    /// A calm account: no throttling, nothing shown late.
    fn default() -> Self {
        Options {
            seed: 0,
            throttling: false,
            charge_refused: false,
            others_share: 0.0,
            latency_ms: (50, 150),
            attach_ms: (1000, 3000),
            imds_lag_ms: (0, 0),
            ec2_lag_ms: (0, 0),
            eni_quota: 5000,
        }
    }
}

/// How often an action was called, and how that ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// All calls.
    pub calls: u64,
    /// Refused by a bucket.
    pub throttled: u64,
    /// Refused for any other reason.
    pub failed: u64,
    /// Never answered.
    pub lost: u64,
}

/// One account in one region.
#[derive(Clone, Debug)]
pub struct Model {
    options: Options,
    faults: Faults,
    rng: Rng,
    now: u64,
    vpcs: BTreeMap<String, Vpc>,
    subnets: BTreeMap<String, Subnet>,
    instances: BTreeMap<String, Instance>,
    enis: BTreeMap<String, EniTruth>,
    /// By client token: the request, and what it was answered.
    created: BTreeMap<String, (Request, EniTruth)>,
    /// What happens without a call, by its time and then by when it was planned.
    due: BTreeMap<(u64, u64), Due>,
    planned: u64,
    ec2: BTreeMap<String, Shown<EniTruth>>,
    /// By instance and ENI.
    metadata: BTreeMap<(String, String), Shown<ImdsEni>>,
    /// By ENI: the instance whose metadata last had it.
    metadata_instance: BTreeMap<String, String>,
    /// What metadata last answered to each instance.
    last_metadata: BTreeMap<String, Vec<ImdsEni>>,
    buckets: Buckets,
    identities: Identities,
    counts: BTreeMap<String, Counted>,
}

#[derive(Clone, Debug)]
struct Vpc {
    cidrs: Vec<Ipv4Net>,
    ipv6: Option<Ipv6Net>,
    default_group: String,
    tags: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
struct Subnet {
    vpc: String,
    zone: String,
    space: Space,
    tags: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
struct Instance {
    limits: TypeLimits,
    state: InstanceState,
    subnet: String,
    vpc: String,
    zone: String,
    address: Ipv4Addr,
    tags: BTreeMap<String, String>,
}

/// The end of something that takes time.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Due {
    /// A new ENI is no longer pending.
    Available(String),
    /// Attaching has ended, for the ENI and this attachment of it.
    Attached(String, String),
    /// Detaching has.
    Detached(String, String),
    /// An instance has gone.
    Terminated(String),
    /// An ENI that has gone is shown no more, by EC2 or by an instance's metadata.
    Forget(String, Option<String>),
}

impl Model {
    /// An account with nothing in it.
    pub fn new(options: Options) -> Self {
        Model {
            rng: Rng::with_seed(options.seed),
            options,
            faults: Faults::default(),
            now: 0,
            vpcs: BTreeMap::new(),
            subnets: BTreeMap::new(),
            instances: BTreeMap::new(),
            enis: BTreeMap::new(),
            created: BTreeMap::new(),
            due: BTreeMap::new(),
            planned: 0,
            ec2: BTreeMap::new(),
            metadata: BTreeMap::new(),
            metadata_instance: BTreeMap::new(),
            last_metadata: BTreeMap::new(),
            buckets: Buckets::default(),
            identities: Identities::default(),
            counts: BTreeMap::new(),
        }
    }

    /// A VPC with its address ranges; its id.
    pub fn create_vpc(&mut self, cidrs: &[Ipv4Net], v6: Option<Ipv6Net>) -> String {
        let id = self.new_id("vpc");
        let default_group = self.new_id("sg");
        self.vpcs.insert(id.clone(), Vpc { cidrs: cidrs.to_vec(), ipv6: v6, default_group, tags: BTreeMap::new() });
        id
    }

    /// A subnet in a zone; its id. EC2 keeps its first four addresses and its last one. The caller sees to it
    /// that it lies in the VPC and overlaps no other.
    pub fn create_subnet(&mut self, vpc: &str, cidr: Ipv4Net, v6: Option<Ipv6Net>, zone: &str) -> String {
        let id = self.new_id("subnet");
        let space = Space::new(cidr, v6);
        let subnet = Subnet { vpc: vpc.to_owned(), zone: zone.to_owned(), space, tags: BTreeMap::new() };
        self.subnets.insert(id.clone(), subnet);
        id
    }

    /// Addresses that others take from now on; those that are not free are passed over.
    pub fn occupy(&mut self, subnet: &str, addresses: impl IntoIterator<Item = Ipv4Addr>) {
        if let Some(subnet) = self.subnets.get_mut(subnet) {
            subnet.space.occupy(addresses);
        }
    }

    /// Somebody gives an ENI these security groups, in an account of their own whose buckets are not this one's.
    pub fn set_groups(&mut self, now: u64, eni: &str, groups: &[String]) {
        self.advance(now);
        // One that there is takes any list.
        let _ = self.modify(eni, None, None, Some(groups));
    }

    /// Addresses that others give back.
    pub fn vacate(&mut self, subnet: &str, addresses: impl IntoIterator<Item = Ipv4Addr>) {
        if let Some(subnet) = self.subnets.get_mut(subnet) {
            subnet.space.vacate(addresses);
        }
    }

    /// How many addresses of a subnet are free; 0 if it does not exist.
    pub fn free(&self, subnet: &str) -> u32 {
        self.subnets.get(subnet).map_or(0, |subnet| subnet.space.free())
    }

    /// The ranges of a VPC as they were given, IPv4 first; `None` if it does not exist.
    pub fn vpc_ranges(&self, vpc: &str) -> Option<(&[Ipv4Net], Option<Ipv6Net>)> {
        self.vpcs.get(vpc).map(|vpc| (vpc.cidrs.as_slice(), vpc.ipv6))
    }

    /// The ids of all VPCs.
    pub fn vpcs(&self) -> impl Iterator<Item = &str> {
        self.vpcs.keys().map(String::as_str)
    }

    /// One call of EC2 by an instance's id or "operator".
    pub fn call(&mut self, now: u64, caller: &str, request: &Request) -> Reply {
        self.advance(now);
        let action = request.action();
        let takes_ms = self.draw(self.options.latency_ms);
        let request_id = self.request_id();
        let outcome = self.outcome(caller, request);
        let counted = self.counts.entry(action.to_owned()).or_default();
        counted.calls += 1;
        match &outcome {
            Outcome::Answer(_) => {}
            Outcome::Error(error) if error.code == "RequestLimitExceeded" => counted.throttled += 1,
            Outcome::Error(_) => counted.failed += 1,
            Outcome::Lost => counted.lost += 1,
        }
        Reply { takes_ms, request_id, outcome }
    }

    fn outcome(&mut self, caller: &str, request: &Request) -> Outcome {
        let action = request.action();
        let chance_of = |chances: &BTreeMap<String, f64>| chances.get(action).copied().unwrap_or(0.0);
        let (lose_request, lose_answer) = (chance_of(&self.faults.lose_request), chance_of(&self.faults.lose_answer));
        if self.faults.down || self.faults.silent || self.chance(lose_request) {
            return Outcome::Lost;
        }
        if let Err(error) = self.admit(caller, request) {
            return Outcome::Error(error);
        }
        let done = self.carry_out(request);
        if self.chance(lose_answer) {
            return Outcome::Lost;
        }
        match done {
            Ok(answer) => Outcome::Answer(answer),
            Err(error) => Outcome::Error(error),
        }
    }

    /// Buckets, IAM and faults, in this order.
    fn admit(&mut self, caller: &str, request: &Request) -> Result<(), ApiError> {
        let action = request.action();
        let Options { throttling, others_share, charge_refused, .. } = self.options;
        if throttling && !self.buckets.take(self.now, action, request.is_plain(), others_share, charge_refused) {
            return Err(ApiError::new("RequestLimitExceeded", "Request limit exceeded."));
        }
        let untagged = matches!(request, Request::CreateNetworkInterface { tags, .. } if tags.is_empty());
        if self.faults.deny.contains(action) || self.faults.deny_untagged_create && untagged {
            return Err(self.denied(&format!("User: {caller} is not authorized to perform: ec2:{action}")));
        }
        self.authorize(caller, request)?;
        if let Some((chance, code)) = self.faults.fail.get(action).cloned()
            && self.chance(chance)
        {
            return Err(ApiError::new(&code, format!("{action} was made to fail")));
        }
        Ok(())
    }

    fn carry_out(&mut self, request: &Request) -> Result<Answer, ApiError> {
        match request {
            Request::CreateNetworkInterface { .. } => self.create_eni(request),
            Request::DeleteNetworkInterface { eni } => self.delete_eni(eni),
            Request::AttachNetworkInterface { eni, instance, device_index, card } => {
                self.attach(eni, instance, *device_index, *card)
            }
            Request::DetachNetworkInterface { attachment, .. } => self.detach(attachment),
            Request::ModifyNetworkInterfaceAttribute { eni, attachment, delete_on_termination, groups } => {
                self.modify(eni, attachment.as_deref(), *delete_on_termination, groups.as_deref())
            }
            Request::AssignPrivateIpAddresses { eni, count, prefix_count, addresses } => {
                self.assign4(eni, *count, *prefix_count, addresses)
            }
            Request::UnassignPrivateIpAddresses { eni, addresses, prefixes } => {
                self.unassign4(eni, addresses, prefixes)
            }
            Request::AssignIpv6Addresses { eni, count, prefix_count } => self.assign6(eni, *count, *prefix_count),
            Request::UnassignIpv6Addresses { eni, addresses, prefixes } => self.unassign6(eni, addresses, prefixes),
            Request::DescribeNetworkInterfaces { ids, filters, max_results, next_token } => {
                self.describe_enis(ids, filters, *max_results, next_token.as_deref())
            }
            Request::DescribeSubnets { ids, filters } => self.describe_subnets(ids, filters),
            Request::DescribeInstances { ids } => self.describe_instances(ids),
            Request::DescribeInstanceTypes { types } => Model::describe_types(types),
            Request::CreateTags { resources, tags } => self.create_tags(resources, tags),
        }
    }

    /// All ENIs as they are, by id; nothing late about it. For those who check others.
    pub fn enis(&self, now: u64) -> Vec<EniTruth> {
        if self.due.first_key_value().is_some_and(|((at, _), _)| *at <= now) {
            let mut later = self.clone();
            later.advance(now);
            return later.enis.into_values().collect();
        }
        self.enis.values().cloned().collect()
    }

    /// What goes wrong from now on.
    pub fn faults_mut(&mut self) -> &mut Faults {
        &mut self.faults
    }

    /// Calls so far, by action.
    pub fn counts(&self) -> &BTreeMap<String, Counted> {
        &self.counts
    }

    /// Carries out what is due.
    fn advance(&mut self, now: u64) {
        while let Some(entry) = self.due.first_entry()
            && entry.key().0 <= now
        {
            let ((at, _), due) = entry.remove_entry();
            self.now = self.now.max(at);
            match due {
                Due::Available(eni) => self.settle(&eni),
                Due::Attached(eni, attachment) => self.attached(&eni, &attachment),
                Due::Detached(eni, attachment) => self.detached(&eni, &attachment),
                Due::Terminated(instance) => self.terminated(&instance),
                Due::Forget(eni, instance) => self.forget(eni, instance),
            }
        }
        self.now = self.now.max(now);
    }

    /// Plans something at a time.
    fn plan(&mut self, at: u64, due: Due) {
        self.planned += 1;
        self.due.insert((at, self.planned), due);
    }

    fn draw(&mut self, (low, high): (u64, u64)) -> u64 {
        self.rng.u64(low..=high.max(low))
    }

    fn chance(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.rng.f64() < chance
    }

    /// A new id of EC2's long form: 17 hexadecimal digits.
    fn new_id(&mut self, kind: &str) -> String {
        format!("{kind}-0{:016x}", self.rng.u64(..))
    }

    fn request_id(&mut self) -> String {
        let bits = self.rng.u128(..);
        let hex = format!("{bits:032x}");
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}
