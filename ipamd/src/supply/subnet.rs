//! One subnet: whether it is short of addresses, and what it has left.

use serde::{Deserialize, Serialize};

use crate::ids::{Millis, SubnetId};

/// How long it is taken to have no /28 after EC2 said so.
const NO_PREFIX_MS: u64 = 120_000;
/// How long it is taken to be short of addresses after EC2 refused an amount.
const SHORT_MS: u64 = 120_000;
/// What EC2 has said that it has left is told for so long.
const TOLD_MS: u64 = 120_000;
/// More free addresses than this are not counted out: others take and give them all the time, and the words that name them
/// are compared.
const COUNTED: u64 = 16;

/// What EC2 has said of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Subnet {
    /// Until when it is taken to have no /28.
    no_prefix_until: Option<Millis>,
    /// The most blocks that one call asks for while it is short, and until when.
    most: Option<(u32, Millis)>,
    /// Until when it is taken to have no address at all.
    full_until: Option<Millis>,
    /// Its free addresses, and since when they are known.
    free: Option<(u64, Millis)>,
}

impl Subnet {
    /// EC2 found no /28 in it.
    pub(crate) fn no_prefix(&mut self, now: Millis) {
        self.no_prefix_until = Some(now.plus(NO_PREFIX_MS));
    }

    /// Until when it is taken to have no /28, if it is.
    pub(crate) fn no_prefix_until(&self) -> Option<Millis> {
        self.no_prefix_until
    }

    /// EC2 refused so many blocks for want of addresses: the next call asks for what is waited for, then for half as
    /// many each time. Whether there is less to ask for.
    pub(crate) fn ask_for_less(&mut self, now: Millis, refused: u32, waiting: u32) -> bool {
        let most = if (1..refused).contains(&waiting) { waiting } else { refused / 2 };
        self.most = Some((most.max(1), now.plus(SHORT_MS)));
        most > 0
    }

    /// EC2 refused a single address: it is taken to have none.
    pub(crate) fn set_full(&mut self, now: Millis) {
        self.full_until = Some(now.plus(SHORT_MS));
    }

    /// EC2 gave so many blocks: where they were all that may be asked for, more may be.
    pub(crate) fn given(&mut self, blocks: u32) {
        self.full_until = None;
        if let Some((most, _)) = self.most.as_mut().filter(|(most, _)| blocks >= *most) {
            *most = most.saturating_mul(2);
        }
    }

    /// The most blocks that one call may ask for, while it is short.
    pub(crate) fn most(&self, now: Millis) -> Option<u32> {
        self.most.filter(|(_, until)| *until > now).map(|(most, _)| most)
    }

    /// Whether it was short of something lately.
    pub(crate) fn is_short(&self, now: Millis) -> bool {
        self.most(now).is_some() || self.has_no_prefix(now)
    }

    /// Whether it is taken to have no address at all.
    pub(crate) fn is_full(&self, now: Millis) -> bool {
        self.full_until.is_some_and(|until| until > now)
    }

    /// Whether it is taken to have no /28.
    pub(crate) fn has_no_prefix(&self, now: Millis) -> bool {
        self.no_prefix_until.is_some_and(|until| until > now)
    }

    /// EC2 says that it has so many free addresses: no call asks for more.
    pub(crate) fn has_left(&mut self, now: Millis, free: u64) {
        self.free = Some((free, now));
        if free > 0 {
            self.full_until = None;
        }
        if let Some((most, _)) = &mut self.most {
            *most = (*most).min(u32::try_from(free).unwrap_or(u32::MAX)).max(1);
        }
    }

    /// Its free addresses, as EC2 has said last, and when.
    pub(crate) fn free(&self) -> Option<(u64, Millis)> {
        self.free
    }

    /// What it has left, in words, while it is short.
    pub(crate) fn words(&self, id: &SubnetId, now: Millis) -> Option<String> {
        let (free, _) = self.free.filter(|(_, since)| self.is_short(now) && now.since(*since) < TOLD_MS)?;
        let free = match free {
            0 => "no".to_owned(),
            1..=COUNTED => free.to_string(),
            _ => format!("more than {COUNTED}"),
        };
        Some(format!("the subnet {id} has {free} free addresses left"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_that_is_short_is_asked_for_less_until_it_gives() {
        let mut subnet = Subnet::default();
        let at = Millis(5);
        assert_eq!(subnet.most(at), None);
        assert!(subnet.ask_for_less(at, 14, 5));
        assert_eq!(subnet.most(at), Some(5), "what is waited for");
        assert!(subnet.ask_for_less(at, 5, 5));
        assert!(subnet.ask_for_less(at, 2, 5));
        assert_eq!(subnet.most(at), Some(1));
        assert!(!subnet.ask_for_less(at, 1, 5), "there is nothing less than one");
        subnet.given(1);
        assert_eq!(subnet.most(at), Some(2));
        assert_eq!(subnet.most(at.plus(SHORT_MS)), None);
    }

    #[test]
    fn what_is_left_is_told_while_the_subnet_is_short() {
        let (mut subnet, id) = (Subnet::default(), SubnetId("subnet-1".into()));
        subnet.ask_for_less(Millis(5), 14, 0);
        subnet.has_left(Millis(7), 3);
        assert_eq!(subnet.most(Millis(7)), Some(3));
        for (free, words) in [(0, "subnet-1 has no free"), (3, "has 3 free"), (4_000, "more than 16")] {
            subnet.has_left(Millis(8), free);
            assert!(subnet.words(&id, Millis(8)).unwrap().contains(words));
        }
        assert_eq!(subnet.words(&id, Millis(5 + SHORT_MS)), None, "it is not short any more");
    }
}
