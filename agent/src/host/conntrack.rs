//! Connection tracking forgets an address before the address is used again.
//!
//! The core says when an address is past its cooldown, and may assign it in the same step. Forgetting reads the
//! whole table, so it runs beside the pods' path, one listing for all that has come together meanwhile. What
//! waits for it is the verdict alone, without which a plugin makes nothing reachable, and only the verdict on
//! an address that is being forgotten: a late deletion would cut the new pod's own connections.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::IpAddr,
};

use enid_datapath::Conntrack;
use enid_ipamd::{AttachmentKey, Ticket};
use tokio::{runtime, sync::mpsc};
use tracing::{debug, warn};

/// Lists taken together at most.
const BATCH: usize = 1024;

/// An offer that was made: to whom, and which addresses.
pub type Offered = (AttachmentKey, Vec<IpAddr>);

/// What is being forgotten, and the verdicts that wait for it.
pub struct Forgetting {
    lists: mpsc::UnboundedSender<Vec<IpAddr>>,
    /// How many lists in flight name the address.
    in_flight: BTreeMap<IpAddr, u32>,
    waiting: Vec<(Ticket, Offered)>,
}

impl Forgetting {
    /// Starts the task beside; it calls `done` with each list that has been dealt with, well or badly.
    pub fn start<F: Future<Output = ()> + Send>(
        background: &runtime::Handle,
        done: impl Fn(Vec<IpAddr>) -> F + Send + 'static,
    ) -> Self {
        let (lists, mut receiver) = mpsc::unbounded_channel::<Vec<IpAddr>>();
        background.spawn(async move {
            let mut reported = None;
            let mut batch = Vec::new();
            while receiver.recv_many(&mut batch, BATCH).await > 0 {
                let list: Vec<IpAddr> = batch.drain(..).flatten().collect();
                let addresses = list.iter().copied().collect();
                let ended = tokio::task::spawn_blocking(move || forget(&addresses)).await;
                let failure = ended.unwrap_or_else(|failure| Err(failure.to_string())).err();
                if failure.is_some() && failure != reported {
                    let failure = failure.as_deref().unwrap_or_default();
                    warn!("cannot delete connection tracking entries; they end by their own timeouts: {failure}");
                }
                reported = failure;
                done(list).await;
            }
        });
        Forgetting { lists, in_flight: BTreeMap::new(), waiting: Vec::new() }
    }

    /// These addresses are past their cooldown.
    pub fn begin(&mut self, addresses: Vec<IpAddr>) {
        for address in &addresses {
            *self.in_flight.entry(*address).or_default() += 1;
        }
        // A closed channel means that the daemon is ending.
        let _ = self.lists.send(addresses);
    }

    /// Keeps the verdict of an offer if it has to wait: whether it does.
    pub fn keeps(&mut self, ticket: Ticket, offered: &Offered) -> bool {
        let waits = offered.1.iter().any(|address| self.in_flight.contains_key(address));
        if waits {
            self.waiting.push((ticket, offered.clone()));
        }
        waits
    }

    /// A list has been dealt with: the offers whose verdict need not wait any more.
    pub fn end(&mut self, addresses: &[IpAddr]) -> Vec<(Ticket, Offered)> {
        for address in addresses {
            if let Some(lists) = self.in_flight.get_mut(address) {
                *lists -= 1;
                if *lists == 0 {
                    self.in_flight.remove(address);
                }
            }
        }
        let in_flight = |address: &IpAddr| self.in_flight.contains_key(address);
        self.waiting.extract_if(.., |(_, (_, addresses))| !addresses.iter().any(in_flight)).collect()
    }
}

fn forget(addresses: &BTreeSet<IpAddr>) -> Result<(), String> {
    let gone = Conntrack::open().and_then(|mut conntrack| conntrack.forget(addresses));
    let gone = gone.map_err(|failure| failure.to_string())?;
    if gone > 0 {
        debug!(gone, ?addresses, "connection tracking has forgotten");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(name: &str, address: IpAddr) -> Offered {
        let key = AttachmentKey { network: "enid".to_owned(), container: name.to_owned(), ifname: "eth0".to_owned() };
        (key, vec![address])
    }

    #[test]
    fn a_verdict_waits_for_its_own_address_and_for_every_list_that_names_it() {
        let (lists, mut sent) = mpsc::unbounded_channel();
        let mut forgetting = Forgetting { lists, in_flight: BTreeMap::new(), waiting: Vec::new() };
        let [a, b, c] = ["10.0.1.20", "10.0.1.21", "2001:db8::1"].map(|text| text.parse::<IpAddr>().unwrap());
        forgetting.begin(vec![a, b]);
        forgetting.begin(vec![a]);
        assert_eq!((sent.try_recv().unwrap(), sent.try_recv().unwrap()), (vec![a, b], vec![a]));
        let pods = [offered("pod-a", a), offered("pod-b", b), offered("pod-c", c)];
        let kept: Vec<bool> = (1..).zip(&pods).map(|(ticket, pod)| forgetting.keeps(Ticket(ticket), pod)).collect();
        assert_eq!(kept, [true, true, false]);
        assert_eq!(forgetting.end(&[a, b]), [(Ticket(2), pods[1].clone())]);
        assert_eq!(forgetting.end(&[a]), [(Ticket(1), pods[0].clone())]);
        assert!(!forgetting.keeps(Ticket(4), &pods[0]));
        assert!(forgetting.end(&[c]).is_empty() && forgetting.in_flight.is_empty());
    }
}
