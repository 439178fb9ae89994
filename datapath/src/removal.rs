//! Host ends of pods' links, found by their MAC and deleted.

use std::collections::BTreeSet;

use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use crate::{
    identity::Mac,
    link::{by_index, mac},
    marks,
    netlink::{Error, Netlink, Request},
};

/// Deletes the host link with this MAC, wherever its name; true if there was one. The link of a
/// successor, with the same name and another MAC, is left alone.
pub fn remove_by_mac(wanted: Mac, likely_name: &str, host: &mut Netlink) -> Result<bool, Error> {
    let Some(found) = find_by_mac(wanted, likely_name, host)? else { return Ok(false) };
    delete(wanted, &found, host).map(|()| true)
}

/// Deletes the host links with these MACs as one act of the kernel; the likely name is where each is looked for first.
/// Alone, every deletion waits for grace periods with all of the node's link changes waiting behind it.
pub fn remove_together(wanted: &[(Mac, String)], host: &mut Netlink) -> Result<(), Error> {
    let mut going = Vec::new();
    let mut strays = BTreeSet::new();
    for (wanted, name) in wanted {
        match host.link(name)?.filter(|link| mac(link) == Some(*wanted)) {
            Some(link) => going.push((*wanted, link)),
            None => drop(strays.insert(*wanted)),
        }
    }
    if !strays.is_empty() {
        let listed = host.links()?.into_iter().filter_map(|link| Some((mac(&link)?, link)));
        going.extend(listed.filter(|(mac, _)| strays.contains(mac)));
    }
    match going.as_slice() {
        [] => Ok(()),
        [(mac, link)] => delete(*mac, link, host),
        several => {
            let gather = |(mac, link): &(Mac, LinkMessage)| {
                let mut message = by_index(link.header.index);
                message.attributes.push(LinkAttribute::Group(marks::GROUP_GOING));
                Request::set_going_link(format!("gather the link with MAC {mac} for its deletion"), message)
            };
            let mut all = LinkMessage::default();
            all.attributes.push(LinkAttribute::Group(marks::GROUP_GOING));
            let delete = Request::delete_link(format!("delete {} links together", several.len()), all);
            host.apply(&several.iter().map(gather).chain([delete]).collect::<Vec<_>>())
        }
    }
}

fn delete(mac: Mac, link: &LinkMessage, host: &mut Netlink) -> Result<(), Error> {
    host.apply(&[Request::delete_link(format!("delete the link with MAC {mac}"), by_index(link.header.index))])
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
