//! `enid.v1.Cni` on cni.sock: a plugin's conversation, turned into messages to the brain.

use std::{collections::BTreeSet, net::IpAddr, pin::Pin, sync::Arc, time::Instant};

use enid_api::v1::{
    AttachReply, AttachRequest, Attachment, CollectReply, CollectRequest, LookupReply, LookupRequest, Offer,
    ReleaseReply, ReleaseRequest, StatusReply, StatusRequest, Verdict, attach_reply::Step as Reply,
    attach_request::Step as Said, cni_server::Cni,
};
use enid_datapath::{identity, marks};
use enid_ipamd::{AttachmentKey, Cause, Event, Lease, PodRef, Refusal};
use futures_util::future::try_join_all;
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use crate::{
    core::handle::{self, Answer, Found, Handle},
    core::readiness::Readiness,
    host::deletion::Deletion,
    host::{kernel, pod_links},
    metrics::Counters,
    reconcile::links,
};

/// The service.
pub struct CniService {
    /// To the brain.
    pub handle: Handle,
    /// What `/metrics` counts.
    pub counters: Arc<Counters>,
    /// Deletes pods' links.
    pub deletion: Deletion,
    /// MTU of pods.
    pub pod_mtu: u32,
    /// First letters of pods' host links.
    pub veth_prefix: String,
    /// ENABLE_MULTI_NIC.
    pub multi_card: bool,
    /// The one rule's word.
    pub readiness: watch::Receiver<Readiness>,
}

#[tonic::async_trait]
impl Cni for CniService {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<AttachReply, Status>> + Send>>;

    async fn attach(&self, request: Request<Streaming<AttachRequest>>) -> Result<Response<Self::AttachStream>, Status> {
        let mut said = request.into_inner();
        let mut under_way = self.handle.open().await.ok_or_else(ending)?;
        let started = Instant::now();
        let counters = self.counters.clone();
        let handle = self.handle.clone();
        let (mtu, prefix, multi_card) = (self.pod_mtu, self.veth_prefix.clone(), self.multi_card);
        let deletion = self.deletion.clone();
        let stream = async_stream::try_stream! {
            let Some(Said::Ask(ask)) = said.message().await?.and_then(|message| message.step) else {
                Err(Status::invalid_argument("an attachment begins with a question"))?;
                return;
            };
            let key = key(ask.attachment)?;
            let pod = ask.pod.map(|pod| PodRef { namespace: pod.namespace, name: pod.name });
            if (ask.each_card || ask.card.is_some()) && !multi_card {
                let words = "the pod asks for an interface on every network card, and the settings forbid to use \
                             further ones (ENABLE_MULTI_NIC)";
                let refusal = Refusal::new(Cause::ProvisioningOff, words);
                counters.add(started.elapsed(), Some(refusal.cause));
                yield reply(refused(refusal));
                return;
            }
            let further = if ask.each_card { handle.further_cards().await.ok_or_else(ending)? } else { Vec::new() };
            under_way.ask(key.clone(), pod, ask.patience_ms, ask.card).await;
            let lease = match answered(&mut under_way, &mut said).await? {
                Answer::Offer(lease) => lease,
                Answer::Refused(refusal) => {
                    counters.add(started.elapsed(), Some(refusal.cause));
                    warn!(container = key.container, cause = %refusal.cause, "ADD refused: {}", refusal.message);
                    yield reply(refused(refusal));
                    return;
                }
                _ => Err(Status::internal("an answer to another question"))?,
            };
            let _wiring = deletion.give_way();
            yield reply(Reply::Offer(Offer { further_cards: further, ..offer(&key, &lease, mtu, &prefix) }));
            let Some(Said::Wired(wired)) = said.message().await?.and_then(|message| message.step) else {
                return; // the plugin gave up; the request's end tells the brain
            };
            let seen = pod_links::is_wired(&key, &wired.host_ifname)
                .map_err(|failure| Status::internal(format!("cannot look for the link: {failure:#}")))?;
            handle.tell(Event::Wired { ticket: under_way.ticket, key: key.clone(), seen }).await;
            let mine = match under_way.answer().await {
                Some(Answer::Verdict(mine)) => mine,
                Some(Answer::Refused(refusal)) => {
                    counters.add(started.elapsed(), Some(refusal.cause));
                    yield reply(refused(refusal)); // the lease could not be written down
                    return;
                }
                _ => false,
            };
            counters.add(started.elapsed(), (!mine).then_some(Cause::Superseded));
            let pod = lease.pod.map(|pod| format!("{}/{}", pod.namespace, pod.name)).unwrap_or_default();
            let took_ms = started.elapsed().as_secs_f64() * 1000.0;
            info!(pod, container = key.container, address = %lease.address, eni = %lease.eni, mine, took_ms, "ADD");
            yield reply(Reply::Verdict(Verdict { mine }));
        };
        Ok(Response::new(Box::pin(stream)))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseReply>, Status> {
        let key = key(request.into_inner().attachment)?;
        self.counters.del();
        let mut keys = vec![key.clone()];
        if key.ifname == identity::FIRST {
            let view = self.handle.view().await.ok_or_else(ending)?;
            keys.extend(view.of_container(&key).filter(|other| identity::is_on_card(&other.ifname)).cloned());
        }
        // At once, so that their links are deleted together.
        let addresses = try_join_all(keys.into_iter().map(|key| self.end(key))).await?;
        let address = addresses.into_iter().next().unwrap_or_default();
        Ok(Response::new(ReleaseReply { address, link_deleted: true }))
    }

    async fn lookup(&self, request: Request<LookupRequest>) -> Result<Response<LookupReply>, Status> {
        let key = key(request.into_inner().attachment)?;
        let found = self.handle.lookup(key).await.ok_or_else(ending)?;
        let Some(Found { lease, fault, wanted }) = found else { return Ok(Response::new(LookupReply::default())) };
        let failed = |failure: String| Status::internal(format!("cannot look at the host: {failure}"));
        let host_faults = kernel::faults(&wanted, lease.slot).await;
        let mut host_faults = host_faults.map_err(|failure| failed(format!("{failure:#}")))?;
        host_faults.extend(fault);
        Ok(Response::new(LookupReply {
            address: lease.address.to_string(),
            second_address: text(lease.second_of_vpc()),
            local_address: text(lease.local()),
            device_group: marks::group(lease.slot),
            host_faults,
        }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let Readiness { obstacle, risk } = self.readiness.borrow().clone();
        let pods_at_risk = risk.is_some();
        // Who may be cut off already comes first: it is the worse news.
        let reply = match risk.or(obstacle) {
            None => StatusReply { ready: true, ..StatusReply::default() },
            Some(refusal) => StatusReply {
                ready: false,
                pods_at_risk,
                cause: refusal.cause.name().to_owned(),
                message: refusal.message,
                retry_after_ms: refusal.retry_after.unwrap_or_default(),
            },
        };
        Ok(Response::new(reply))
    }

    async fn collect(&self, request: Request<CollectRequest>) -> Result<Response<CollectReply>, Status> {
        let CollectRequest { network, valid } = request.into_inner();
        let mut alive: Vec<AttachmentKey> = valid
            .into_iter()
            .map(|valid| AttachmentKey { network: network.clone(), container: valid.container, ifname: valid.ifname })
            .collect();
        let doubted: Vec<AttachmentKey> = {
            let view = self.handle.view().await.ok_or_else(ending)?;
            // The runtime does not know of those on further network cards: they live as long as their container's first.
            let on_card = |key: &&AttachmentKey| identity::is_on_card(&key.ifname);
            let further = alive.iter().flat_map(|key| view.of_container(key).filter(on_card).cloned());
            alive.extend(further.collect::<Vec<_>>());
            let alive: BTreeSet<&AttachmentKey> = alive.iter().collect();
            view.leases
                .into_iter()
                .map(|(key, _)| key)
                .filter(|key| key.network == network && !alive.contains(key))
                .collect()
        };
        self.handle.tell(Event::Collect { network, alive }).await;
        links::list(&self.handle).await.map_err(|failure| {
            Status::internal(format!("nothing is released, since the links cannot be listed: {failure:#}"))
        })?;
        let after = self.handle.view().await.ok_or_else(ending)?.leases;
        let (kept, released): (Vec<_>, Vec<_>) = doubted.into_iter().partition(|key| after.contains_key(key));
        released.iter().for_each(|key| info!(container = key.container, ifname = key.ifname, "GC"));
        for key in &kept {
            warn!(container = key.container, ifname = key.ifname, "GC does not list it, and its link stands: kept");
        }
        let name =
            |key: AttachmentKey| Attachment { network: key.network, container: key.container, ifname: key.ifname };
        Ok(Response::new(CollectReply {
            released: u32::try_from(released.len()).unwrap_or(u32::MAX),
            kept: kept.into_iter().map(name).collect(),
        }))
    }
}

impl CniService {
    /// Takes an attachment's link away, and then ends its lease; the address that rests now.
    async fn end(&self, key: AttachmentKey) -> Result<String, Status> {
        let found = self.handle.lookup(key.clone()).await.ok_or_else(ending)?;
        let name = found.map(|Found { lease, .. }| host_ifname(&key, &lease, &self.veth_prefix));
        self.delete_link(&key, name.as_deref()).await?;
        let mut under_way = self.handle.open().await.ok_or_else(ending)?;
        self.handle.tell(Event::Release { ticket: under_way.ticket, key: key.clone() }).await;
        let Some(Answer::Released(address)) = under_way.answer().await else { return Err(ending()) };
        // An ADD of the same attachment may have made its link after the deletion, and before its lease ended.
        let late = name.as_deref().map_or(Ok(address.is_some()), |name| pod_links::is_wired(&key, name));
        if late.map_err(|failure| Status::internal(format!("cannot look for the link: {failure:#}")))? {
            self.delete_link(&key, name.as_deref()).await?;
        }
        let address = address.map(|address| address.to_string()).unwrap_or_default();
        info!(container = key.container, ifname = key.ifname, address, "DEL");
        Ok(address)
    }

    async fn delete_link(&self, key: &AttachmentKey, likely_name: Option<&str>) -> Result<(), Status> {
        let AttachmentKey { network, container, ifname } = key;
        let without_pod = || identity::ifname_for_attachment(&self.veth_prefix, network, container, ifname);
        let likely_name = likely_name.map_or_else(without_pod, str::to_owned);
        let deleted = self.deletion.of(identity::host_mac(network, container, ifname), likely_name).await;
        deleted.map_err(|failure| Status::internal(format!("the link stays: {failure}")))
    }
}

/// Waits for the brain's answer, unless the plugin goes first.
async fn answered(under_way: &mut handle::Request, said: &mut Streaming<AttachRequest>) -> Result<Answer, Status> {
    tokio::select! {
        answer = under_way.answer() => answer.ok_or_else(ending),
        // Whatever the plugin says before it has an offer, it is not waiting any more.
        _ = said.message() => Err(Status::cancelled("the plugin closed the request")),
    }
}

/// What the plugin is to wire.
fn offer(key: &AttachmentKey, lease: &Lease, mtu: u32, prefix: &str) -> Offer {
    let AttachmentKey { network, container, ifname } = key;
    Offer {
        address: lease.address.to_string(),
        mtu,
        second_address: text(lease.second_of_vpc()),
        local_address: text(lease.local()),
        further_cards: Vec::new(),
        host_ifname: host_ifname(key, lease, prefix),
        host_mac: identity::host_mac(network, container, ifname).0.to_vec(),
        pod_mac: identity::pod_mac(network, container, ifname).0.to_vec(),
        device_group: marks::group(lease.slot),
    }
}

fn text(address: Option<IpAddr>) -> String {
    address.map(|address| address.to_string()).unwrap_or_default()
}

/// The name of an attachment's host link.
pub fn host_ifname(key: &AttachmentKey, lease: &Lease, prefix: &str) -> String {
    match &lease.pod {
        Some(pod) => identity::ifname_for_pod(prefix, &pod.namespace, &pod.name, lease.index),
        None => identity::ifname_for_attachment(prefix, &key.network, &key.container, &key.ifname),
    }
}

fn key(attachment: Option<Attachment>) -> Result<AttachmentKey, Status> {
    let Some(Attachment { network, container, ifname }) = attachment else {
        return Err(Status::invalid_argument("the request names no attachment"));
    };
    for (field, value) in [("network", &network), ("container", &container), ("ifname", &ifname)] {
        if value.is_empty() || value.len() > 512 || value.contains('\0') {
            return Err(Status::invalid_argument(format!("the attachment's {field} is empty or not a name")));
        }
    }
    Ok(AttachmentKey { network, container, ifname })
}

fn refused(refusal: Refusal) -> Reply {
    Reply::Refusal(enid_api::v1::Refusal {
        cause: refusal.cause.name().to_owned(),
        message: refusal.message,
        aws_request_id: refusal.request_id.unwrap_or_default(),
        retry_after_ms: refusal.retry_after.unwrap_or_default(),
    })
}

fn reply(step: Reply) -> AttachReply {
    AttachReply { step: Some(step) }
}

fn ending() -> Status {
    Status::unavailable("the daemon is ending")
}
