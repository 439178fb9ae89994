//! A small EC2 that keeps limits, answers late, and sometimes refuses.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use enid_ipamd::{
    AuditedEni, Call, CallError, Cause, Ec2Answer, EniId, Event, Fact, Kind, Lease, Order, Scope, SubnetFacts,
    UnattachedEni,
};
use ipnet::{IpNet, Ipv6Net};

use super::world::{Cloud, LIMITS, Subnet, World, subnet};

impl World {
    /// EC2 answers the oldest call.
    pub fn answer(&mut self) {
        let Some((id, call)) = self.calls.pop_front() else { return };
        let prefix = matches!(&call, Call::Assign { order, .. } if order.kind == Kind::Prefix)
            || matches!(&call, Call::Create { creation, .. } if creation.order.kind == Kind::Prefix);
        let (asked, of) = match &call {
            Call::Assign { eni, order } => (order.count, self.enis[eni].subnet.clone()),
            // The ENI's own address is out of the subnet as well.
            Call::Create { creation, home, .. } => (creation.order.count + 1, home.subnet.clone().unwrap_or(subnet(1))),
            _ => (0, subnet(1)),
        };
        let left = self.subnets[&of].left;
        let is_short = left.is_some_and(|left| asked > left);
        let is_taken = matches!(&call, Call::Attach { place, .. } if Some(*place) == self.foreign);
        let refused = |cause, fact| Err(CallError { cause, message: "no".into(), request_id: None, fact });
        let answer = match self.refuse.or((self.fragmented && prefix).then_some(Cause::NoPrefix)) {
            Some(cause) => refused(cause, Fact::None),
            None if is_short => refused(Cause::SubnetFull, Fact::None),
            None if is_taken => refused(Cause::Ec2Error, Fact::PlaceTaken),
            None => {
                self.subnets.get_mut(&of).expect("known").left = left.map(|left| left - asked);
                Ok(self.carry_out(&call))
            }
        };
        self.step(Event::Answered { id, answer });
    }

    /// EC2 refuses the oldest call.
    pub fn refuse_next(&mut self, cause: Cause, fact: Fact) {
        let Some((id, _)) = self.calls.pop_front() else { return };
        let error = CallError { cause, message: "no".into(), request_id: None, fact };
        self.step(Event::Answered { id, answer: Err(error) });
    }

    pub fn blocks(&mut self, order: Order) -> BTreeSet<IpNet> {
        (0..order.count)
            .map(|_| {
                self.next = self.next.checked_add(1).expect("enough addresses");
                match order.kind {
                    Kind::V6Prefix => {
                        let first = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, self.next.into(), 0, 0, 0);
                        IpNet::V6(Ipv6Net::new(first, 80).expect("a length"))
                    }
                    _ => IpNet::from(IpAddr::V4(Ipv4Addr::new(10, 0, 1, self.next))),
                }
            })
            .collect()
    }

    /// As many of each family as an ENI carries.
    pub fn fits(eni: &Cloud) {
        let v4 = eni.blocks.iter().filter(|net| matches!(net, IpNet::V4(_))).count();
        assert!(v4 < 4 && eni.blocks.len() - v4 <= 1, "more than an ENI carries or needs: {eni:?}");
    }

    pub fn carry_out(&mut self, call: &Call) -> Ec2Answer {
        match call {
            Call::Audit { scope } => {
                let attached = self.enis.iter().filter(|(_, eni)| eni.place.is_some());
                let attached = attached.filter(|(_, eni)| *scope == Scope::Attached || eni.tagged);
                let audited = |(id, eni): (&EniId, &Cloud)| AuditedEni {
                    id: id.clone(),
                    ours: eni.tagged,
                    no_manage: false,
                    delete_on_termination: eni.protected,
                    attachment: format!("att-{id}"),
                    place: eni.place.unwrap_or_default(),
                    token: eni.token.clone(),
                    blocks: eni.blocks.clone(),
                };
                let loose = self.enis.iter().filter(|(_, eni)| eni.place.is_none());
                let unattached =
                    loose.map(|(id, eni)| UnattachedEni { id: id.clone(), token: eni.token.clone() }).collect();
                Ec2Answer::Audited { attached: attached.map(audited).collect(), unattached }
            }
            Call::Tag { eni } => {
                self.enis.get_mut(eni).expect("known").tagged = true;
                Ec2Answer::Done
            }
            Call::Create { creation, token, home } => {
                if let Some((id, eni)) = self.enis.iter().find(|(_, eni)| eni.token.as_ref() == Some(token)) {
                    return Ec2Answer::Created { eni: id.clone(), blocks: eni.blocks.iter().copied().collect() };
                }
                let id = EniId(format!("eni-{}", self.next).into());
                assert!(creation.order.count < LIMITS.addresses_per_eni, "more than an ENI carries");
                let mut blocks = self.blocks(creation.order);
                if creation.with_v6 {
                    blocks.extend(self.blocks(Order { kind: Kind::V6Prefix, count: 1 }));
                }
                let created = blocks.iter().copied().collect();
                let token = Some(token.clone());
                let groups = home.groups.as_ref().clone();
                let subnet = home.subnet.clone().unwrap_or(subnet(1));
                self.enis.insert(id.clone(), Cloud { tagged: true, blocks, token, groups, subnet, ..Cloud::new() });
                Ec2Answer::Created { eni: id, blocks: created }
            }
            Call::Attach { eni, place } => {
                let bare = self.bare.iter().map(|eni| eni.place);
                let attached = self.enis.values().filter_map(|eni| eni.place).chain(bare).collect::<Vec<_>>();
                assert!(!attached.contains(place), "{place:?} is taken");
                let there = attached.iter().filter(|other| other.card == place.card).count();
                assert!(there < if place.card == 0 { 3 } else { 2 }, "more ENIs than the card carries");
                self.enis.get_mut(eni).expect("known").place = Some(*place);
                Ec2Answer::Attached { attachment: format!("att-{eni}") }
            }
            Call::DeleteOnTermination { eni, .. } => {
                self.enis.get_mut(eni).expect("known").protected = true;
                Ec2Answer::Done
            }
            Call::Assign { eni, order } => {
                let new = self.blocks(*order);
                let eni = self.enis.get_mut(eni).expect("known");
                assert!(eni.tagged, "changed before it was ours");
                eni.blocks.extend(&new);
                Self::fits(eni);
                Ec2Answer::Assigned { blocks: new.into_iter().collect() }
            }
            Call::Unassign { eni, blocks } => {
                let cloud = self.enis.get_mut(eni).expect("known");
                for net in blocks {
                    let used = |lease: &Lease| lease.addresses().any(|address| net.contains(&address));
                    assert!(!self.ledger.leases.values().any(used), "an address in use goes back");
                    cloud.blocks.remove(net);
                }
                Ec2Answer::Done
            }
            Call::FindLeaked => Ec2Answer::Leaked { enis: Vec::new() },
            Call::Subnets { ids } => {
                let asked = self.subnets.iter().filter(|(id, _)| ids.is_empty() || ids.contains(id));
                let facts = |subnet: &Subnet| SubnetFacts {
                    free: subnet.left.unwrap_or(200).into(),
                    v6: true,
                    role: subnet.role.clone(),
                    clusters: subnet.clusters.clone(),
                };
                Ec2Answer::Subnets { list: asked.map(|(id, subnet)| (id.clone(), facts(subnet))).collect() }
            }
            Call::SetGroups { eni, groups } => {
                self.enis.get_mut(eni).expect("known").groups = groups.as_ref().clone();
                Ec2Answer::Done
            }
            Call::Detach { eni, .. } => {
                self.enis.get_mut(eni).expect("known").place = None;
                Ec2Answer::Done
            }
            Call::Delete { eni } => {
                let gone = self.enis.remove(eni).expect("known");
                assert!(gone.place.is_none() && self.ledger.leases.values().all(|lease| lease.eni != *eni));
                Ec2Answer::Done
            }
        }
    }
}
