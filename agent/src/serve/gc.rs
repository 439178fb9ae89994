//! GC (CNI 1.1, "GC: Clean up any stale resources"): leases that the runtime's list does not name end, if their links are gone.

use std::{collections::BTreeSet, sync::Arc};

use enid_api::{
    parts,
    v1::{Attachment, CollectReply, CollectRequest, from_plugin::Kind as Said},
};
use enid_datapath::identity;
use enid_ipamd::{AttachmentKey, Event};
use prost::Message;
use tokio::runtime;
use tracing::{info, warn};

use crate::{
    core::handle::Handle,
    reconcile::links,
    record::{Kind, Record},
    serve::packets::{Connection, End, in_background},
};

/// Attachments that GC keeps are named up to this length, bytes; the rest are counted.
const NAMED_MAX: usize = 64 * 1024;

/// GC's list, all of its parts.
pub(super) async fn whole_list(first: CollectRequest, plugin: &Connection) -> Result<CollectRequest, End> {
    let mut list = parts::List::default();
    let mut part = first;
    loop {
        if let Some(whole) = list.take(part).map_err(|error| End::NotUnderstood(error.to_string()))? {
            return Ok(whole);
        }
        part = match plugin.receive().await? {
            Some(Said::Collect(next)) => next,
            Some(_) => return Err(End::NotUnderstood("something else comes between two parts of a list".to_owned())),
            None => return Err(End::Gone),
        };
    }
}

/// Ends what the list does not name and has no link; those that keep their address are named.
pub(super) async fn collect(
    list: CollectRequest,
    handle: &Handle,
    record: &Arc<Record>,
    background: &runtime::Handle,
) -> Result<CollectReply, End> {
    let mut gc = record.begin(Kind::Gc, None, None);
    let collected = collect_unlisted(list, handle, background).await;
    match &collected {
        Ok(CollectReply { released: 0, .. }) => gc.done(),
        Ok(CollectReply { released, .. }) => gc.done_with(format_args!("{released} leases ended")),
        Err(End::Failed(words)) => gc.failed(words),
        Err(_) => {}
    }
    collected
}

async fn collect_unlisted(
    list: CollectRequest,
    handle: &Handle,
    background: &runtime::Handle,
) -> Result<CollectReply, End> {
    let CollectRequest { network, valid, .. } = list;
    let mut alive: Vec<AttachmentKey> = valid
        .into_iter()
        .map(|valid| AttachmentKey { network: network.clone(), container: valid.container, ifname: valid.ifname })
        .collect();
    let unlisted: Vec<AttachmentKey> = {
        let view = handle.view().await.ok_or(End::Gone)?;
        // The runtime does not know of those on further network cards: they live as long as their container's first.
        let on_card = |key: &&AttachmentKey| identity::is_on_card(&key.ifname);
        let further = alive.iter().flat_map(|key| view.of_container(key).filter(on_card).cloned());
        alive.extend(further.collect::<Vec<_>>());
        let alive: BTreeSet<&AttachmentKey> = alive.iter().collect();
        view.keys().filter(|key| key.network == network && !alive.contains(key)).cloned().collect()
    };
    handle.tell(Event::Gc { network, alive }).await;
    let lists = handle.clone();
    let listed = in_background(background, async move { links::list(&lists).await }).await?;
    listed.map_err(|failure| {
        End::Failed(format!("nothing is released, since the links cannot be listed: {failure:#}"))
    })?;
    let after = handle.view().await.ok_or(End::Gone)?;
    let (kept, released): (Vec<_>, Vec<_>) = unlisted.into_iter().partition(|key| after.lease(key).is_some());
    released.iter().for_each(|key| info!(container = key.container, ifname = key.ifname, "GC"));
    for key in &kept {
        warn!(
            container = key.container,
            ifname = key.ifname,
            "GC's list does not name it, but its link is there: it keeps its address"
        );
    }
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let (released, all) = (number(released.len()), kept.len());
    let mut room = NAMED_MAX;
    let kept: Vec<Attachment> = kept
        .into_iter()
        .map(|key| Attachment { network: key.network, container: key.container, ifname: key.ifname })
        .take_while(|kept| {
            // With its key and its length.
            let left = room.checked_sub(kept.encoded_len() + 8);
            room = left.unwrap_or_default();
            left.is_some()
        })
        .collect();
    Ok(CollectReply { released, kept_unnamed: number(all - kept.len()), kept })
}
