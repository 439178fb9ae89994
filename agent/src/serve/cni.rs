//! cni.sock: a plugin's conversation, turned into messages to the core's task. Each connection is one conversation, and a
//! task on the core's own thread.

use std::{net::IpAddr, sync::Arc, time::Duration};

use enid_api::v1::{
    Ask, Attachment, Failure, LookupReply, LookupRequest, Offer, Pending, ReleaseReply, ReleaseRequest, Report,
    StatusReply, Verdict, from_daemon::Kind as Reply, from_plugin::Kind as Said,
};
use enid_datapath::{Mac, identity, marks};
use enid_ipamd::{AttachmentKey, Cause, Lease, Macs, PodRef, Refusal};
use futures_util::future::join_all;
use tokio::{runtime, sync::watch};
use tracing::warn;

use crate::{
    clock,
    core::handle::{self, Answer, Found, Handle},
    core::readiness::{self, Readiness},
    host::deletion::Deletion,
    host::{kernel, pod_links},
    kubernetes::Tell,
    record::{Begun, Kind, Record},
    serve::{
        gc,
        packets::{Connection, End, Plugins, in_background},
    },
};

/// When a plugin whose request waits for an address is told so; well within what it gives a daemon to answer at all.
const PENDING: Duration = Duration::from_millis(200);
/// Longest sentence in an answer, bytes: plugins have room for a few kilobytes.
const SENTENCE_MAX: usize = 2_000;

/// The service.
pub struct CniService {
    /// To tell the cluster of pods.
    pub tell: Tell,
    /// To the core's task.
    pub handle: Handle,
    /// What is done.
    pub record: Arc<Record>,
    /// Deletes pods' links.
    pub deletion: Deletion,
    /// MTU of pods.
    pub pod_mtu: u32,
    /// First letters of pods' host links.
    pub veth_prefix: String,
    /// ENABLE_MULTI_NIC.
    pub multi_card: bool,
    /// Whether pods can be served.
    pub readiness: watch::Receiver<Readiness>,
    /// Where whole listings of the kernel are made: they would hold up every pod here.
    pub background: runtime::Handle,
}

impl CniService {
    /// Serves all who connect, until the daemon ends.
    pub async fn run(self, mut plugins: Plugins) {
        let service = Arc::new(self);
        loop {
            let connection = plugins.accept().await;
            let service = service.clone();
            tokio::spawn(async move { service.converse(&connection).await });
        }
    }

    async fn converse(&self, plugin: &Connection) {
        let (not_understood, message) = match self.answer(plugin).await {
            Ok(()) | Err(End::Gone) => return,
            Err(End::NotUnderstood(words)) => (true, words),
            Err(End::Failed(words)) => (false, words),
        };
        warn!("a connection of cni.sock is closed: {message}");
        // A plugin that does not read it has the closed connection.
        let _ = plugin.send(Reply::Failure(Failure { not_understood, message: sentence(message) })).await;
    }

    /// One conversation, begun by its first packet.
    async fn answer(&self, plugin: &Connection) -> Result<(), End> {
        let Some(first) = plugin.receive().await? else { return Ok(()) };
        let reply = match first {
            Said::Ask(ask) => return self.attach(ask, plugin).await,
            Said::Report(report) => {
                self.reported(report)?;
                return Ok(());
            }
            Said::Wired(_) => return Err(End::NotUnderstood("\"wired\" comes before \"ask\"".to_owned())),
            Said::Release(request) => Reply::Released(self.release(request).await?),
            Said::Lookup(request) => Reply::Found(self.lookup(request).await?),
            Said::Status(_) => Reply::Status(self.status()),
            Said::Collect(first) => {
                let list = gc::whole_list(first, plugin).await?;
                Reply::Collected(gc::collect(list, &self.handle, &self.record, &self.background).await?)
            }
        };
        Ok(plugin.send(reply).await?)
    }

    /// What only the plugin can say is recorded.
    fn reported(&self, report: Report) -> Result<(), End> {
        let Report { attachment, pod, verb, message, failed } = report;
        let key = key(attachment)?;
        let pod = pod.map(|pod| PodRef { namespace: pod.namespace, name: pod.name });
        let message = sentence(message);
        let kind = match &*verb {
            "ADD" => Kind::Add,
            "DEL" => Kind::Del,
            _ => Kind::Check,
        };
        if failed {
            // A call that failed before it had a question, or after its answer.
            self.record.begin(kind, Some(&key), pod.as_ref()).failed_for(Cause::WiringFailed, message);
        } else {
            let mut said = self.record.begin(Kind::Plugin, Some(&key), pod.as_ref());
            said.about(kind.name());
            said.done_with(message);
        }
        Ok(())
    }

    /// ADD gets no address: recorded, and told to the cluster and to the plugin.
    async fn refuse(
        &self,
        add: &mut Begun,
        pod: Option<&PodRef>,
        refusal: Refusal,
        plugin: &Connection,
    ) -> Result<(), End> {
        add.refused(&refusal);
        add.record_now();
        if let Some(pod) = pod {
            self.tell.reports.refused(pod, &refusal);
        }
        Ok(plugin.send(refused(refusal)).await?)
    }

    /// ADD, from its question to its verdict. When it ends early, the request's end gives the address back.
    async fn attach(&self, ask: Ask, plugin: &Connection) -> Result<(), End> {
        let key = key(ask.attachment)?;
        let pod = ask.pod.map(|pod| PodRef { namespace: pod.namespace, name: pod.name });
        let mut add = self.record.begin(Kind::Add, Some(&key), pod.as_ref());
        add.follows(&ask.traceparent);
        let attached =
            self.attach_recorded(ask.timeout_ms, (ask.card, ask.each_card), key, pod, &mut add, plugin).await;
        if let Err(End::Failed(words) | End::NotUnderstood(words)) = &attached {
            add.failed_for(Cause::WiringFailed, words);
        }
        attached
    }

    async fn attach_recorded(
        &self,
        timeout_ms: u64,
        (card, each_card): (Option<u32>, bool),
        key: AttachmentKey,
        pod: Option<PodRef>,
        add: &mut Begun,
        plugin: &Connection,
    ) -> Result<(), End> {
        if (each_card || card.is_some()) && !self.multi_card {
            let words = "the pod asks for an interface on every network card, and the settings forbid to use \
                         further ones (ENABLE_MULTI_NIC)";
            let refusal = Refusal::new(Cause::ProvisioningOff, words);
            return self.refuse(add, pod.as_ref(), refusal, plugin).await;
        }
        let mut request = self.handle.open().await.ok_or(End::Gone)?;
        request.ask(key.clone(), pod.clone(), timeout_ms, card).await;
        let cards = async { if each_card { self.handle.further_cards().await } else { Some(Vec::new()) } };
        // It is published already: the core is not asked once for each who waits.
        let waits = || self.readiness.borrow().obstacle.iter().for_each(|refusal| add.waits_for(refusal));
        let (answer, further) = offered(&mut request, cards, plugin, waits).await?;
        add.phase("address");
        let lease = match answer {
            Answer::Offer(lease) => lease,
            Answer::Refused(refusal) => return self.refuse(add, pod.as_ref(), refusal, plugin).await,
            _ => return Err(End::Failed("an answer to another question".to_owned())),
        };
        add.address(lease.address, &lease.eni);
        let wiring = self.deletion.begin_wiring();
        let offer = Offer { further_cards: further, ..offer(&key, &lease, self.pod_mtu, &self.veth_prefix) };
        plugin.send(Reply::Offer(offer)).await?;
        let wired = match plugin.receive().await? {
            Some(Said::Wired(wired)) => wired,
            Some(Said::Report(report)) if report.failed => {
                add.failed_for(Cause::WiringFailed, format_args!("the plugin gave up: {}", sentence(report.message)));
                return Err(End::Gone);
            }
            Some(_) => return Err(End::NotUnderstood("after an offer comes \"wired\"".to_owned())),
            None => return Err(End::Gone),
        };
        let (host_mac, _) = pod_links::macs(&key, Some(&lease));
        let seen = pod_links::is_wired(host_mac, &wired.host_ifname)
            .map_err(|failure| End::Failed(format!("cannot look for the link: {failure:#}")))?;
        add.phase("wiring");
        request.wired(key.clone(), seen).await;
        let mine = match request.answer().await {
            Some(Answer::Verdict(mine)) => mine,
            // The lease could not be written down.
            Some(Answer::Refused(refusal)) => return self.refuse(add, pod.as_ref(), refusal, plugin).await,
            _ => false,
        };
        plugin.send(Reply::Verdict(Verdict { mine })).await?;
        add.phase("verdict");
        if mine {
            add.done_now();
            self.tell.annotations.has(pod.as_ref().filter(|_| key.ifname == identity::FIRST), lease.address);
        } else {
            add.superseded();
            add.record_now();
        }
        // Deletions wait for it no longer, however long it takes.
        drop(wiring);
        // Until the plugin has gone it configures the host's end, which is nobody's drift.
        let _ = plugin.receive().await;
        Ok(())
    }

    async fn release(&self, request: ReleaseRequest) -> Result<ReleaseReply, End> {
        let key = key(request.attachment.clone())?;
        self.record.del_requested();
        let mut keys = vec![key.clone()];
        if key.ifname == identity::FIRST {
            let view = self.handle.view().await.ok_or(End::Gone)?;
            if self.tell.annotations.are_wanted()
                && let Some((_, lease)) = view.leases().find(|(leased, _)| **leased == key)
            {
                self.tell.annotations.had(lease.pod.as_ref(), lease.address);
            }
            keys.extend(view.of_container(&key).filter(|other| identity::is_on_card(&other.ifname)).cloned());
        }
        // At once, so that their links are deleted together.
        let ended = join_all(keys.into_iter().map(|key| self.end(key, &request.traceparent))).await;
        let addresses = ended.into_iter().collect::<Result<Vec<_>, End>>()?;
        let address = addresses.into_iter().next().unwrap_or_default();
        Ok(ReleaseReply { address, link_deleted: true })
    }

    async fn lookup(&self, request: LookupRequest) -> Result<LookupReply, End> {
        let key = key(request.attachment)?;
        let mut check = self.record.begin(Kind::Check, Some(&key), None);
        let reply = self.look_up(key, &mut check).await;
        match &reply {
            Ok(reply) if reply.address.is_empty() => check.failed("the daemon holds no lease for the attachment"),
            Ok(reply) if !reply.host_faults.is_empty() => check.failed(reply.host_faults.join("; ")),
            Ok(_) => check.done(),
            Err(End::Failed(words)) => check.failed(words),
            Err(_) => {}
        }
        reply
    }

    async fn look_up(&self, key: AttachmentKey, check: &mut Begun) -> Result<LookupReply, End> {
        let found = self.handle.lookup(key).await.ok_or(End::Gone)?;
        let Some(Found { lease, fault, wanted }) = found else { return Ok(LookupReply::default()) };
        check.of_pod(lease.pod.as_ref());
        check.address(lease.address, &lease.eni);
        let of_other_plugin = |mac: fn(Macs) -> [u8; 6]| lease.macs.map(|macs| mac(macs).to_vec()).unwrap_or_default();
        let (host_mac, pod_mac) = (of_other_plugin(|macs| macs.host), of_other_plugin(|macs| macs.pod));
        let failed = |failure: String| End::Failed(format!("cannot look at the host: {failure}"));
        let slot = lease.slot;
        let host_faults =
            in_background(&self.background, async move { kernel::faults(&wanted, Some(slot)).await }).await?;
        let mut host_faults = host_faults.map_err(|failure| failed(format!("{failure:#}")))?;
        host_faults.extend(fault);
        Ok(LookupReply {
            address: lease.address.to_string(),
            second_address: text(lease.second_of_vpc()),
            local_address: text(lease.local()),
            device_group: marks::group(lease.slot),
            host_faults,
            host_mac,
            pod_mac,
        })
    }

    fn status(&self) -> StatusReply {
        let readiness = self.readiness.borrow();
        let (refusal, pods_cut_off) = match readiness.status() {
            readiness::Status::Yes => return StatusReply { ready: true, ..StatusReply::default() },
            readiness::Status::NotYet(refusal) => (refusal, false),
            readiness::Status::CutOff(refusal) => (refusal, true),
        };
        let (cause, message) = (refusal.cause.name().to_owned(), sentence(refusal.message.clone()));
        StatusReply { ready: false, pods_cut_off, cause, message }
    }

    /// Takes an attachment's link away, and then ends its lease; the address whose cooldown begins.
    async fn end(&self, key: AttachmentKey, traceparent: &str) -> Result<String, End> {
        let mut del = self.record.begin(Kind::Del, Some(&key), None);
        del.follows(traceparent);
        match self.end_recorded(key, &mut del).await {
            Ok(address) => {
                del.done();
                Ok(address)
            }
            Err(end) => {
                if let End::Failed(words) = &end {
                    del.failed(words);
                }
                Err(end)
            }
        }
    }

    async fn end_recorded(&self, key: AttachmentKey, del: &mut Begun) -> Result<String, End> {
        let found = self.handle.lookup(key.clone()).await.ok_or(End::Gone)?;
        if let Some(Found { lease, .. }) = &found {
            del.of_pod(lease.pod.as_ref());
            del.address(lease.address, &lease.eni);
        }
        let (host_mac, _) = pod_links::macs(&key, found.as_ref().map(|found| &found.lease));
        let name = found.map(|Found { lease, .. }| host_ifname(&key, &lease, &self.veth_prefix));
        self.delete_link(&key, host_mac, name.as_deref()).await?;
        del.phase("link");
        let mut request = self.handle.open().await.ok_or(End::Gone)?;
        request.release(key.clone()).await;
        let Some(Answer::Released(address)) = request.answer().await else { return Err(End::Gone) };
        // An ADD of the same attachment may have made its link after the deletion, and before its lease ended.
        let late = name.as_deref().map_or(Ok(address.is_some()), |name| pod_links::is_wired(host_mac, name));
        if late.map_err(|failure| End::Failed(format!("cannot look for the link: {failure:#}")))? {
            self.delete_link(&key, host_mac, name.as_deref()).await?;
        }
        del.phase("lease");
        Ok(address.map(|address| address.to_string()).unwrap_or_default())
    }

    async fn delete_link(&self, key: &AttachmentKey, mac: Mac, likely_name: Option<&str>) -> Result<(), End> {
        let AttachmentKey { network, container, ifname } = key;
        let without_pod = || identity::ifname_for_attachment(&self.veth_prefix, network, container, ifname);
        let likely_name = likely_name.map_or_else(without_pod, str::to_owned);
        let deleted = self.deletion.of(mac, likely_name).await;
        deleted.map_err(|failure| End::Failed(format!("the link stays: {failure}")))
    }
}

/// Waits for an address and the further network cards, unless the plugin goes first. A plugin that has to wait hears that
/// it does.
async fn offered(
    request: &mut handle::Request,
    cards: impl Future<Output = Option<Vec<u32>>>,
    plugin: &Connection,
    waits: impl FnOnce(),
) -> Result<(Answer, Vec<u32>), End> {
    let mut answer = std::pin::pin!(async {
        let cards = cards.await?;
        Some((request.answer().await?, cards))
    });
    // The packet has to leave after so long, and only then: it is a deadline, not a wait for something.
    let mut pending = std::pin::pin!(tokio::time::sleep(PENDING));
    let (mut said, mut waits) = (false, Some(waits));
    loop {
        tokio::select! {
            biased;
            answer = &mut answer => return answer.ok_or(End::Gone),
            packet = plugin.receive() => return Err(match packet? {
                None => End::Gone,
                Some(_) => End::NotUnderstood("the plugin speaks before it has an offer".to_owned()),
            }),
            () = &mut pending, if !said => {
                plugin.send(Reply::Pending(Pending {})).await?;
                said = true;
                waits.take().into_iter().for_each(|waits| waits());
            }
        }
    }
}

/// What the plugin is to wire.
fn offer(key: &AttachmentKey, lease: &Lease, mtu: u32, prefix: &str) -> Offer {
    let (host_mac, pod_mac) = pod_links::macs(key, Some(lease));
    Offer {
        address: lease.address.to_string(),
        mtu,
        second_address: text(lease.second_of_vpc()),
        local_address: text(lease.local()),
        further_cards: Vec::new(),
        host_ifname: host_ifname(key, lease, prefix),
        host_mac: host_mac.0.to_vec(),
        pod_mac: pod_mac.0.to_vec(),
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

fn key(attachment: Option<Attachment>) -> Result<AttachmentKey, End> {
    let Some(Attachment { network, container, ifname }) = attachment else {
        return Err(End::Failed("the request names no attachment".to_owned()));
    };
    for (field, value) in [("network", &network), ("container", &container), ("ifname", &ifname)] {
        if value.is_empty() || value.len() > 512 || value.contains('\0') {
            return Err(End::Failed(format!("the attachment's {field} is empty or not a name")));
        }
    }
    Ok(AttachmentKey { network, container, ifname })
}

fn refused(refusal: Refusal) -> Reply {
    Reply::Refusal(enid_api::v1::Refusal {
        cause: refusal.cause.name().to_owned(),
        message: sentence(refusal.message),
        aws_request_id: refusal.request_id.unwrap_or_default(),
        retry_at: refusal.retry_after.map(clock::minute_after).unwrap_or_default(),
    })
}

/// Not longer than what a plugin has room for.
fn sentence(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(SENTENCE_MAX));
    text
}
