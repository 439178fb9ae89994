//! Pods' links are deleted together, and while no pod is being wired.
//!
//! A link's deletion waits for the kernel's grace periods, and for some milliseconds holds up every other change of a
//! link on the node: sixteen at once hold up an ADD sixteen times. So one deletion is in flight at a time and takes
//! along all that has come together meanwhile, and pods that come go before pods that go.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use enid_datapath::{Family, Mac, link, removal};
use tokio::{
    runtime,
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use crate::host::netlink::Netlink;

/// How long a deletion waits at most for pods that are being wired.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// A way to the deletions.
#[derive(Clone)]
pub struct Deletion {
    requests: mpsc::UnboundedSender<Pending>,
    wiring: watch::Sender<usize>,
}

struct Pending {
    mac: Mac,
    likely_name: String,
    done: oneshot::Sender<Result<(), Arc<str>>>,
}

/// A pod is being wired, as long as this lives.
pub struct Wiring(watch::Sender<usize>);

impl Deletion {
    /// Starts the task that deletes.
    pub fn start(background: &runtime::Handle) -> Self {
        let (requests, mut receiver) = mpsc::unbounded_channel::<Pending>();
        let wiring = watch::Sender::new(0);
        let mut wired = wiring.subscribe();
        background.spawn(async move {
            while let Some(first) = receiver.recv().await {
                // Neither its end nor the limit's is a failure: the deletion is due either way.
                let _ = timeout(LONGEST_WAIT, wired.wait_for(|pods| *pods == 0)).await;
                let mut batch = vec![first];
                batch.extend(std::iter::from_fn(|| receiver.try_recv().ok()));
                let links: Vec<_> = batch.iter().map(|request| (request.mac, request.likely_name.clone())).collect();
                let ended = delete(&links).await.map_err(|error| Arc::from(error.to_string()));
                // Who does not wait any more has deleted it without us, or died.
                batch.into_iter().for_each(|request| drop(request.done.send(ended.clone())));
            }
        });
        Deletion { requests, wiring }
    }

    /// Deletes the link with this MAC, if there is one; the likely name is where it is looked for first.
    pub async fn of(&self, mac: Mac, likely_name: String) -> Result<(), Arc<str>> {
        let (done, answer) = oneshot::channel();
        // A closed channel means that the daemon is ending: no answer comes.
        let _ = self.requests.send(Pending { mac, likely_name, done });
        answer.await.unwrap_or_else(|_| Err("the daemon is ending".into()))
    }

    /// A pod is about to be wired.
    pub fn begin_wiring(&self) -> Wiring {
        self.wiring.send_modify(|pods| *pods += 1);
        Wiring(self.wiring.clone())
    }
}

impl Drop for Wiring {
    fn drop(&mut self) {
        self.0.send_modify(|pods| *pods -= 1);
    }
}

/// The likely name is where each link is looked for first; a listing of all finds the others.
async fn delete(links: &[(Mac, String)]) -> Result<(), enid_datapath::Error> {
    let mut netlink = Netlink::open()?;
    let (mut found, mut under_other_names) = (Vec::new(), BTreeSet::new());
    for (wanted, name) in links {
        match netlink.link(name).await?.filter(|there| link::mac(there) == Some(*wanted)) {
            Some(link) => found.push((*wanted, link)),
            None => drop(under_other_names.insert(*wanted)),
        }
    }
    if !under_other_names.is_empty() {
        found.extend(removal::picked(&under_other_names, netlink.list(&[Family::V4]).await?));
    }
    netlink.apply(&removal::together(&found)).await
}
