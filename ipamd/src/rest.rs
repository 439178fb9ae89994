//! Rest after use: an address that a pod gave back is given to nobody for a while, over restarts too.

use std::net::IpAddr;

use crate::{Core, Effect, Millis, Write};

impl Core {
    /// Sends an address to rest.
    pub(crate) fn lay_to_rest(&mut self, now: Millis, address: IpAddr, effects: &mut Vec<Effect>) {
        let until = now.plus(self.node.policy.rest_ms);
        self.resting.insert(address, until);
        self.rest_ends.insert((until, address));
        effects.push(Effect::Record(Write::Rest(address, Some(until))));
        self.with_block_of(address, |block| {
            block.held -= 1;
            block.resting += 1;
        });
    }

    /// Ends the rests whose time has come. The store forgets one when the address is given again: a record that is over
    /// does no harm. A block of IPv6 is never counted out, though, and most of its addresses are given once only.
    pub(crate) fn end_rests(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let mut addresses = Vec::new();
        while let Some((until, address)) = self.rest_ends.get_min().copied()
            && (until <= now || self.is_mutated(crate::mutation::Mutation::NoRest))
        {
            self.rest_ends.remove(&(until, address));
            self.resting.remove(&address);
            self.with_block_of(address, |block| {
                block.resting -= 1;
                block.give_back(address, now);
            });
            if address.is_ipv6() {
                effects.push(Effect::Record(Write::Rest(address, None)));
            }
            addresses.push(address);
        }
        if !addresses.is_empty() {
            effects.push(Effect::Forget { addresses });
        }
    }

    /// When the next address has rested, if one rests on an ENI that gives.
    pub(crate) fn next_rested(&self) -> Option<Millis> {
        let gives = |address: IpAddr| {
            self.block_of(address).is_some_and(|block| block.leads && block.state == crate::BlockState::Open)
        };
        self.rest_ends.iter().find(|(_, address)| gives(*address)).map(|(until, _)| *until)
    }
}
