//! Host ends of pods' links, found by their MAC and deleted.

use std::collections::BTreeSet;

use netlink_packet_route::link::LinkMessage;
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use crate::{
    identity::Mac,
    marks,
    netlink::{error::Error, link::mac, request::Request, socket::Netlink},
};

/// Deletes the host link with this MAC, wherever its name; true if there was one. The link of a
/// successor, with the same name and another MAC, is left alone.
pub fn remove_by_mac(wanted: Mac, likely_name: &str, host: &mut Netlink) -> Result<bool, Error> {
    let Some(found) = find_by_mac(wanted, likely_name, host)? else { return Ok(false) };
    host.apply(&[deletion(wanted, found.header.index)]).map(|()| true)
}

/// Deletes the host links with these MACs as one act of the kernel; the likely name is where each is looked for first.
pub fn remove_together(wanted: &[(Mac, String)], host: &mut Netlink) -> Result<(), Error> {
    let (mut found, mut under_other_names) = (Vec::new(), BTreeSet::new());
    for (wanted, name) in wanted {
        match host.link(name)?.filter(|link| mac(link) == Some(*wanted)) {
            Some(link) => found.push((*wanted, link)),
            None => drop(under_other_names.insert(*wanted)),
        }
    }
    if !under_other_names.is_empty() {
        found.extend(picked(&under_other_names, host.links()?));
    }
    host.apply(&together(&found))
}

/// The requests that delete these host links as one act of the kernel; links that are gone meanwhile are fine. Alone,
/// every deletion waits for grace periods with all of the node's link changes waiting behind it.
pub fn together(links: &[(Mac, LinkMessage)]) -> Vec<Request> {
    match links {
        [] => Vec::new(),
        [(mac, link)] => vec![deletion(*mac, link.header.index)],
        several => {
            let gather = |(mac, link): &(Mac, LinkMessage)| {
                let message = LinkUnspec::new_with_index(link.header.index).link_group(marks::GROUP_DELETED);
                Request::set_link(format!("gather the link with MAC {mac} for its deletion"), message.build())
                    .unless_gone()
            };
            let all = LinkMessageBuilder::<LinkUnspec>::new().link_group(marks::GROUP_DELETED).build();
            let delete = Request::delete_link(format!("delete {} links together", several.len()), all);
            several.iter().map(gather).chain([delete]).collect()
        }
    }
}

/// The links with these MACs among those listed.
pub fn picked(wanted: &BTreeSet<Mac>, listed: Vec<LinkMessage>) -> Vec<(Mac, LinkMessage)> {
    let with_mac = listed.into_iter().filter_map(|link| Some((mac(&link)?, link)));
    with_mac.filter(|(mac, _)| wanted.contains(mac)).collect()
}

/// The request that deletes the link of this number.
pub fn deletion(mac: Mac, index: u32) -> Request {
    let message = LinkUnspec::new_with_index(index).build();
    Request::delete_link(format!("delete the link with MAC {mac}"), message)
}

/// The host link with this MAC: under its likely name, or else among all links.
pub fn find_by_mac(wanted: Mac, likely_name: &str, host: &mut Netlink) -> Result<Option<LinkMessage>, Error> {
    if let Some(link) = host.link(likely_name)?
        && mac(&link) == Some(wanted)
    {
        return Ok(Some(link));
    }
    Ok(host.links()?.into_iter().find(|link| mac(link) == Some(wanted)))
}
