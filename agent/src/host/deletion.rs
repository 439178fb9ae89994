//! Pods' links are deleted together, and while no pod is being wired.
//!
//! A link's deletion waits for the kernel's grace periods, and for some milliseconds holds up every other change of a
//! link on the node: sixteen at once hold up an ADD sixteen times. So one deletion is under way at a time and takes
//! along all that has come together meanwhile, and pods that come go before pods that go.

use std::{sync::Arc, time::Duration};

use enid_datapath::{Mac, Netlink, removal};
use tokio::{
    runtime,
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

/// How long a deletion waits at most for pods that are being wired.
const PATIENCE: Duration = Duration::from_millis(100);

/// A way to the deletions.
#[derive(Clone)]
pub struct Deletion {
    wishes: mpsc::UnboundedSender<Wish>,
    wiring: watch::Sender<usize>,
}

struct Wish {
    mac: Mac,
    likely_name: String,
    done: oneshot::Sender<Result<(), Arc<str>>>,
}

/// A pod is being wired, as long as this lives.
pub struct Wiring(watch::Sender<usize>);

impl Deletion {
    /// Starts the task that deletes.
    pub fn start(elsewhere: &runtime::Handle) -> Self {
        let (wishes, mut receiver) = mpsc::unbounded_channel::<Wish>();
        let wiring = watch::Sender::new(0);
        let mut under_way = wiring.subscribe();
        elsewhere.spawn(async move {
            while let Some(first) = receiver.recv().await {
                // Neither its end nor the limit's is a failure: the deletion is due either way.
                let _ = timeout(PATIENCE, under_way.wait_for(|pods| *pods == 0)).await;
                let mut batch = vec![first];
                batch.extend(std::iter::from_fn(|| receiver.try_recv().ok()));
                let links: Vec<_> = batch.iter().map(|wish| (wish.mac, wish.likely_name.clone())).collect();
                let ended = tokio::task::spawn_blocking(move || delete(&links)).await;
                let ended = ended.unwrap_or_else(|failure| Err(failure.to_string().into()));
                // Who does not wait any more has deleted it without us, or died.
                batch.into_iter().for_each(|wish| drop(wish.done.send(ended.clone())));
            }
        });
        Deletion { wishes, wiring }
    }

    /// Deletes the link with this MAC, if there is one; the likely name is where it is looked for first.
    pub async fn of(&self, mac: Mac, likely_name: String) -> Result<(), Arc<str>> {
        let (done, answer) = oneshot::channel();
        // A closed channel means that the daemon is ending: no answer comes.
        let _ = self.wishes.send(Wish { mac, likely_name, done });
        answer.await.unwrap_or_else(|_| Err("the daemon is ending".into()))
    }

    /// A pod is about to be wired.
    pub fn give_way(&self) -> Wiring {
        self.wiring.send_modify(|pods| *pods += 1);
        Wiring(self.wiring.clone())
    }
}

impl Drop for Wiring {
    fn drop(&mut self) {
        self.0.send_modify(|pods| *pods -= 1);
    }
}

fn delete(links: &[(Mac, String)]) -> Result<(), Arc<str>> {
    let deleted = Netlink::open().and_then(|mut netlink| removal::remove_together(links, &mut netlink));
    deleted.map_err(|error| error.to_string().into())
}
