//! GC's list of valid attachments in as many packets as it needs.
//!
//! The list counts only when it is complete: whoever is not in it may lose an address.

use prost::Message;

use crate::{
    packet::PACKET_MAX,
    v1::{Attachment, CollectRequest},
};

/// Attachments of one part, bytes. What is left of the packet is for the envelope and the network's name.
const PART_MAX: usize = PACKET_MAX / 2;

/// Most parts of one list: 32 MiB of names.
const PARTS_MAX: u32 = 512;

/// Most attachments of one list. A node has some hundred pods; this is what a receiver has memory for.
const ATTACHMENTS_MAX: usize = 256 * 1024;

/// Why parts are not a list.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It cannot be sent.
    #[error("the list of valid attachments is too long: {0}")]
    TooLong(&'static str),
    /// It is not the one that comes next.
    #[error("part {part} of {parts} of the list of valid attachments, and part {expected} of {of} is expected")]
    Order {
        /// Number of the part, from 1.
        part: u32,
        /// How many there are, as the part says.
        parts: u32,
        /// Number of the part that was to come.
        expected: u32,
        /// How many there are, as the first part said.
        of: u32,
    },
    /// It is of another network.
    #[error("part {part} of the list of valid attachments is of another network than part 1")]
    Network {
        /// Number of the part, from 1.
        part: u32,
    },
}

/// The list as requests, to be sent in this order. An empty list is one request.
pub fn split(network: &str, valid: impl IntoIterator<Item = Attachment>) -> Result<Vec<CollectRequest>, Error> {
    if network.len() > PART_MAX / 2 {
        return Err(Error::TooLong("the network's name"));
    }
    let mut requests = vec![part(network)];
    let mut size = 0;
    for attachment in valid {
        // With its key and its length.
        let length = attachment.encoded_len() + 8;
        if length > PART_MAX {
            return Err(Error::TooLong("the name of an attachment"));
        }
        if size + length > PART_MAX {
            requests.push(part(network));
            size = 0;
        }
        size += length;
        if let Some(last) = requests.last_mut() {
            last.valid.push(attachment);
        }
    }
    let entries: usize = requests.iter().map(|request| request.valid.len()).sum();
    let parts = u32::try_from(requests.len()).ok();
    let parts = parts.filter(|parts| *parts <= PARTS_MAX && entries <= ATTACHMENTS_MAX);
    let parts = parts.ok_or(Error::TooLong("the number of its entries"))?;
    for (number, request) in (1..).zip(&mut requests) {
        (request.part, request.parts) = (number, parts);
    }
    Ok(requests)
}

fn part(network: &str) -> CollectRequest {
    CollectRequest { network: network.to_owned(), ..CollectRequest::default() }
}

/// A list whose parts come one by one.
#[derive(Debug, Default)]
pub struct List {
    whole: CollectRequest,
}

impl List {
    /// Takes the next part: the whole list once this is the last one. After an error the list is void.
    pub fn take(&mut self, part: CollectRequest) -> Result<Option<CollectRequest>, Error> {
        let CollectRequest { network, valid, part, parts } = part;
        let first = self.whole.part == 0;
        let (expected, of) = (self.whole.part + 1, if first { parts } else { self.whole.parts });
        if part != expected || parts != of || part > parts || parts > PARTS_MAX {
            return Err(Error::Order { part, parts, expected, of });
        }
        if first {
            self.whole.network = network;
        } else if network != self.whole.network {
            return Err(Error::Network { part });
        }
        if self.whole.valid.len() + valid.len() > ATTACHMENTS_MAX {
            return Err(Error::TooLong("the number of its entries"));
        }
        (self.whole.part, self.whole.parts) = (part, parts);
        self.whole.valid.extend(valid);
        Ok((part == parts).then(|| std::mem::take(&mut self.whole)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;
    use crate::{packet, v1::from_plugin::Kind};

    fn valid(number: usize) -> Vec<Attachment> {
        let attachment = |index| Attachment {
            network: "enid".to_owned(),
            container: format!("{index:064}"),
            ifname: "eth0".to_owned(),
        };
        (0..number).map(attachment).collect()
    }

    #[test]
    fn a_list_of_any_length_comes_whole_and_each_part_fits() {
        for number in [0, 1, 700, 701, 5_000] {
            let parts = split("enid", valid(number)).unwrap();
            assert_eq!(parts.len() > 1, number > 1_000, "{number}");
            let mut list = List::default();
            let (last, before) = parts.split_last().unwrap();
            for part in before {
                assert!(packet::from_plugin(Kind::Collect(part.clone())).len() <= packet::PACKET_MAX);
                assert_eq!(list.take(part.clone()), Ok(None));
            }
            let whole = list.take(last.clone()).unwrap().unwrap();
            assert_eq!((whole.network.as_str(), whole.valid), ("enid", valid(number)));
        }
    }

    #[test]
    fn a_list_that_is_not_complete_is_none() {
        let parts = split("enid", valid(5_000)).unwrap();
        let [one, two, three, ..] = &parts[..] else { panic!("{} parts", parts.len()) };
        let taken = |order: &[&CollectRequest]| {
            let mut list = List::default();
            order.iter().map(|part| list.take((*part).clone())).last().unwrap()
        };
        assert!(matches!(taken(&[one, three]), Err(Error::Order { part: 3, expected: 2, .. })), "one is missing");
        assert!(matches!(taken(&[two]), Err(Error::Order { part: 2, expected: 1, .. })), "out of order");
        assert!(matches!(taken(&[one, one]), Err(Error::Order { part: 1, expected: 2, .. })), "twice the same");
        assert_eq!(taken(&[one, two]), Ok(None), "its end is missing");
        let other = CollectRequest { network: "other".to_owned(), ..two.clone() };
        assert_eq!(taken(&[one, &other]), Err(Error::Network { part: 2 }));
        let shorter = CollectRequest { parts: 2, ..two.clone() };
        assert!(matches!(taken(&[one, &shorter]), Err(Error::Order { .. })));
    }

    #[test]
    fn a_part_without_numbers_ends_nobody() {
        let unnumbered = CollectRequest { network: "enid".to_owned(), ..CollectRequest::default() };
        assert!(List::default().take(unnumbered.clone()).is_err());
        assert!(List::default().take(CollectRequest { part: 1, ..unnumbered.clone() }).is_err());
        assert!(List::default().take(CollectRequest { part: 1, parts: PARTS_MAX + 1, ..unnumbered }).is_err());
    }

    #[test]
    fn a_list_of_more_entries_than_there_is_memory_for_is_refused() {
        let empty = vec![Attachment::default(); ATTACHMENTS_MAX / 2 + 1];
        let part = |part| CollectRequest { network: "enid".to_owned(), valid: empty.clone(), part, parts: 2 };
        let mut list = List::default();
        assert_eq!(list.take(part(1)), Ok(None));
        assert!(matches!(list.take(part(2)), Err(Error::TooLong(_))));
    }

    #[test]
    fn names_that_fit_no_packet_are_refused() {
        let long = "x".repeat(packet::PACKET_MAX);
        let attachment = Attachment { container: long.clone(), ..Attachment::default() };
        assert!(split(&long, []).is_err() && split("enid", [attachment]).is_err());
    }
}
