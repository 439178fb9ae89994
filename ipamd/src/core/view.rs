//! The state, to be read by the process and by tests.

use std::{collections::BTreeSet, net::IpAddr};

use super::Core;
use crate::{
    cause::{Cause, Refusal},
    ids::{AttachmentKey, EniId, Millis},
    lease::Lease,
    plan::{self, Plan},
    pool::{BlockState, Eni, EniState},
    supply::{Counts, Kind, Limits, Provisioning, kind::is_local},
    view::{Capacity, InFlight, Pacing, View},
};

/// An action that was denied, and that nobody has wanted since, is taken to be denied for so long.
const DENIED_MS: u64 = 600_000;

impl Core {
    /// The state at this moment.
    pub fn view(&self, now: Millis) -> View {
        let plan = self.plan(now);
        let cards = self.pool.cards(&self.node);
        let is_known = self.node.limits != Limits::UNKNOWN;
        let enis: u32 =
            cards.iter().filter(|_| is_known).map(|card| self.node.policy.eni_max(self.node.limits, *card)).sum();
        let capacity = |enis| self.node.policy.capacity(self.node.limits, enis);
        let addresses = capacity(enis);
        let of_first = if is_known { self.node.policy.eni_max(self.node.limits, 0) } else { 0 };
        let of_first = of_first.saturating_sub(self.state().enis_not_for_pods(0));
        let grows = self.node.policy.provisioning == Provisioning::On;
        let for_pods = if grows { capacity(of_first) } else { 0 };
        let in_flight = self.calls.in_flight().map(|flight| InFlight {
            action: flight.call.action(),
            eni: flight.call.eni().cloned(),
            since: flight.since,
            reason: flight.reason.clone(),
        });
        let pauses = self.calls.pauses().map(|(action, pause)| (action, pause.until, pause.refusal.clone()));
        View {
            now,
            counts: self.counts(),
            capacity: Capacity {
                enis,
                addresses,
                for_pods,
                max_pods: self.node.policy.max_pods,
                cards,
                free: self.demand.subnets().free().collect(),
            },
            enis: self.pool.enis_by_id().clone(),
            blocks: self.pool.blocks_by_net().clone(),
            groups: self.observed.groups().known().clone(),
            leases: self.leases.all().clone(),
            orphans: self.leases.orphans().collect(),
            holders: self.leases.holders().clone(),
            cooling: self.cooldown.by_address().clone(),
            in_flight: in_flight.collect(),
            blocked: self.blocked_by(now, &plan),
            plan,
            pacing: Pacing {
                restrictions: self.node.restrictions.clone(),
                pauses: pauses.collect(),
                pace: self.calls.pace().clone(),
            },
            broken: self.integrity.broken().map(ToString::to_string).collect(),
        }
    }

    /// Addresses assigned, available and asked for, over all network cards.
    pub fn counts(&self) -> Counts {
        self.state().counts()
    }

    /// Why an ADD would not succeed at once; `None` if it would.
    pub fn blocked(&self, now: Millis) -> Option<Refusal> {
        if self.would_serve() { self.broken() } else { self.blocked_by(now, &self.plan(now)) }
    }

    fn blocked_by(&self, now: Millis, plan: &Plan) -> Option<Refusal> {
        self.broken().or_else(|| plan.refusal(now, 0).filter(|_| !self.would_serve()))
    }

    fn would_serve(&self) -> bool {
        self.observed.blocked().is_none()
            && self.observed.has_listed_links()
            && self.pool.pick(&self.node, None).is_some()
    }

    /// The first invariant that a step would have broken, as a reason to refuse.
    pub fn broken(&self) -> Option<Refusal> {
        let broken = self.integrity.broken().next()?;
        let message = format!("a step would have broken an invariant, and nothing is released since: {broken}");
        Some(Refusal::new(Cause::Internal, message))
    }

    /// What EC2 refuses for want of a right; `None` as far as is known nothing. Also while there are addresses enough: what
    /// is denied may be what gives back, and somebody has to mend it before it is needed.
    pub fn denied(&self, now: Millis) -> Option<&Refusal> {
        let lately = self.calls.pauses().filter(|(_, pause)| pause.until.plus(DENIED_MS) > now);
        let paused = lately.map(|(_, pause)| &pause.refusal);
        paused.chain(self.demand.places().refusal()).find(|refusal| refusal.cause == Cause::Denied)
    }

    /// Why instance metadata cannot be read, once that has lasted; `None` as far as is known it can be.
    pub fn unreadable(&self, now: Millis) -> Option<Refusal> {
        self.observed.unreadable(now)
    }

    /// Why running pods may have lost their network; `None` as far as is known they have not.
    pub fn pods_at_risk(&self) -> Option<Refusal> {
        let eni = self.audits.lost().get_min()?;
        let message = format!("{eni} is not attached to this instance any more, and running pods have its addresses");
        Some(Refusal::new(Cause::EniLost, message))
    }

    /// The lease of an attachment.
    pub fn lease(&self, key: &AttachmentKey) -> Option<&Lease> {
        self.leases.get(key)
    }

    /// What is wrong with the ENI or the address under a lease, one sentence; `None` as far as is known nothing is.
    pub fn lease_fault(&self, lease: &Lease) -> Option<String> {
        let eni = &lease.eni;
        let Some(carrier) = self.pool.eni(eni) else {
            return Some(format!("{eni} is not attached to this instance"));
        };
        if carrier.unconfirmed {
            return Some(format!("instance metadata does not show {eni} any more"));
        }
        let shown = |address: &IpAddr| {
            let net = carrier.blocks.iter().find(|net| net.contains(address));
            let block = net.and_then(|net| self.pool.block(net));
            block.is_some_and(|block| block.state() != BlockState::Unconfirmed)
        };
        let mut of_vpc = [Some(lease.address), lease.second_of_vpc()].into_iter().flatten();
        of_vpc.find(|address| !shown(address)).map(|address| format!("EC2 does not show {address} on {eni} any more"))
    }

    /// All leases, for matching them with the kernel's links.
    pub fn leases(&self) -> impl Iterator<Item = (&AttachmentKey, &Lease)> {
        self.leases.all().iter().map(|(key, lease)| (key.as_ref(), lease.as_ref()))
    }

    /// Whether something is on its way that instance metadata will show.
    pub fn awaits_metadata(&self) -> bool {
        self.awaited_blocks().next().is_some() || self.pool.enis().next().is_none() || self.awaits_groups()
    }

    /// Whether EC2 does not know one of the security groups that metadata showed last.
    pub fn awaits_groups(&self) -> bool {
        self.observed.groups().is_awaited()
    }

    /// ENIs of which something is on its way that instance metadata will show, with the kinds of blocks that are; an ENI
    /// without blocks is on its way itself.
    pub fn awaited_blocks(&self) -> impl Iterator<Item = (&EniId, BTreeSet<Kind>)> {
        let awaited = self.pool.expected().filter(|(_, expected)| expected.since.is_some());
        awaited.map(|(eni, expected)| (eni, expected.blocks.iter().map(Kind::of).collect()))
    }

    /// Whether a listing of the kernel's links is waited for: the first of all, one before an ENI is detached or a block
    /// unassigned, and one to end a lease whose link was missing from the last one.
    pub fn awaits_listing(&self) -> bool {
        !self.observed.has_listed_links()
            || plan::awaits_listing(&self.state())
            || self.leases.values().any(|lease| lease.missing_since.is_some())
    }

    /// ENIs that host and nftables table must carry: all that have a slot, and those that had one in the kernel when this
    /// run began and are not confirmed yet: after a lost store pods may depend on them.
    pub fn host_enis(&self) -> impl Iterator<Item = (&Eni, u32)> {
        let in_kernel = |eni: &Eni| self.slots.in_kernel(eni.facts.mac).filter(|_| eni.state == EniState::Unknown);
        self.pool.enis().filter_map(move |eni| Some((eni, eni.slot.or_else(|| in_kernel(eni))?)))
    }

    /// Slots that leases name, with the leases' addresses of the VPC, and [`Core::host_enis`] does not: pods depend on an
    /// ENI that metadata has not shown since this run began. What the host has of these slots is retained.
    pub fn retained_slots(&self) -> Vec<(u32, IpAddr)> {
        let carried: BTreeSet<u32> = self.host_enis().map(|(_, slot)| slot).collect();
        let others = self.leases.values().filter(|lease| !carried.contains(&lease.slot));
        let each = others.flat_map(|lease| lease.addresses().map(|address| (lease.slot, address)));
        // One that another ENI has by now is that one's.
        each.filter(|(_, address)| !is_local(*address) && self.pool.block_of(*address).is_none()).collect()
    }

    /// Another number whenever [`Core::host_enis`] may tell something else.
    pub fn topology(&self) -> u64 {
        self.pool.topology()
    }

    /// Takes a guard away.
    #[cfg(feature = "mutations")]
    pub fn mutate(&mut self, mutation: crate::mutation::Mutation) {
        self.integrity.mutate(mutation);
    }
}
