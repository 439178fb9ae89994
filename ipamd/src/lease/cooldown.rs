//! Cooldown: an address that a pod returned is assigned to nobody for a while, over restarts too.

use std::net::IpAddr;

use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};

use crate::ids::Millis;

/// The addresses in their cooldown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cooldown {
    until: OrdMap<IpAddr, Millis>,
    ends: OrdSet<(Millis, IpAddr)>,
}

impl Cooldown {
    /// What the store remembers.
    pub(crate) fn new(cooling: impl IntoIterator<Item = (IpAddr, Millis)>) -> Self {
        let until: OrdMap<IpAddr, Millis> = cooling.into_iter().collect();
        let ends = until.iter().map(|(address, until)| (*until, *address)).collect();
        Cooldown { until, ends }
    }

    pub(crate) fn start(&mut self, address: IpAddr, until: Millis) {
        self.stop(address);
        self.until.insert(address, until);
        self.ends.insert((until, address));
    }

    /// Ends it early; whether the address was cooling.
    pub(crate) fn stop(&mut self, address: IpAddr) -> bool {
        let Some(until) = self.until.remove(&address) else { return false };
        self.ends.remove(&(until, address));
        true
    }

    /// The next address whose cooldown is over at this moment.
    pub(crate) fn pop_over(&mut self, now: Millis) -> Option<IpAddr> {
        let (until, address) = *self.ends.get_min()?;
        (until <= now).then(|| {
            self.stop(address);
            address
        })
    }

    pub(crate) fn contains(&self, address: &IpAddr) -> bool {
        self.until.contains_key(address)
    }

    /// How many of these addresses are cooling.
    pub(crate) fn count_in(&self, first: IpAddr, last: IpAddr) -> usize {
        self.until.range(first..=last).count()
    }

    /// When each cooldown ends, the first one first.
    pub(crate) fn ends(&self) -> impl Iterator<Item = (Millis, IpAddr)> {
        self.ends.iter().copied()
    }

    /// Until when each address is cooling.
    pub(crate) fn by_address(&self) -> &OrdMap<IpAddr, Millis> {
        &self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_to_end_goes_first_and_one_that_starts_again_ends_once() {
        let [a, b]: [IpAddr; 2] = ["10.0.1.20", "10.0.1.21"].map(|text| text.parse().unwrap());
        let mut cooldown = Cooldown::new([(a, Millis(50))]);
        cooldown.start(b, Millis(20));
        cooldown.start(a, Millis(70));
        assert_eq!((cooldown.pop_over(Millis(19)), cooldown.pop_over(Millis(20))), (None, Some(b)));
        assert!(cooldown.contains(&a) && !cooldown.contains(&b));
        assert_eq!((cooldown.pop_over(Millis(69)), cooldown.pop_over(Millis(70))), (None, Some(a)));
        assert_eq!(cooldown.count_in(a, b), 0);
    }
}
