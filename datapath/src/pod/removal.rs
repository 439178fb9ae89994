//! Host ends of pods' links, found by their MAC and deleted.

use std::{collections::BTreeSet, net::IpAddr};

use netlink_packet_route::link::LinkMessage;
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use crate::{
    identity::Mac,
    marks,
    netlink::{
        error::Error,
        link::{group, mac, named},
        request::Request,
        socket::Netlink,
    },
};

/// Deletes the host link with this MAC, wherever its name; true if there was one. The link of a
/// successor, with the same name and another MAC, is left alone.
pub fn remove_by_mac(wanted: Mac, likely_name: &str, host: &mut Netlink) -> Result<bool, Error> {
    let Some(found) = find_by_mac(wanted, likely_name, host)? else { return Ok(false) };
    host.apply(&[deletion(wanted, found.header.index)]).map(|()| true)
}

/// Deletes the host link of this name that another plugin has made and that was taken over, if its alias names nothing but
/// these addresses: its MAC can be derived from nothing. One that we made, for a successor of the same name, is left alone.
pub fn remove_taken_over(name: &str, addresses: &[IpAddr], host: &mut Netlink) -> Result<(), Error> {
    let Some(found) = host.link(name)? else { return Ok(()) };
    match mac(&found).filter(|_| is_taken_over(&found, addresses)) {
        Some(mac) => host.apply(&[deletion(mac, found.header.index)]),
        None => Ok(()),
    }
}

fn is_taken_over(link: &LinkMessage, addresses: &[IpAddr]) -> bool {
    let of_another = mac(link).is_some_and(|mac| !mac.may_be_derived());
    let named = named(link);
    let is_its = !named.is_empty() && named.iter().all(|address| addresses.contains(address));
    of_another && marks::slot_of_group(group(link)).is_some() && is_its
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

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkAttribute;

    use super::*;

    /// The kind: DEL of a container that has ended takes the link of the container that is there now.
    #[test]
    fn a_link_is_taken_over_if_nobody_could_have_derived_its_mac_and_it_names_the_address() {
        let link = |first: u8, group: u32, alias: &str| {
            let mut link = LinkMessage::default();
            link.attributes = vec![
                LinkAttribute::Address(vec![first, 0xc6, 7, 0xdb, 6, 0x1c]),
                LinkAttribute::Group(group),
                LinkAttribute::IfAlias(alias.to_owned()),
            ];
            link
        };
        let its: [IpAddr; 1] = ["10.0.80.194".parse().unwrap()];
        assert!(is_taken_over(&link(0xd2, marks::group(1), "10.0.80.194"), &its));
        assert!(!is_taken_over(&link(0x0a, marks::group(1), "10.0.80.194"), &its), "ours");
        assert!(!is_taken_over(&link(0xd2, 0, "10.0.80.194"), &its), "not taken over");
        assert!(!is_taken_over(&link(0xd2, marks::group(1), "10.0.80.195"), &its), "of a successor");
        assert!(!is_taken_over(&link(0xd2, marks::group(1), ""), &its) && !is_taken_over(&link(0xd2, 0, ""), &[]));
    }
}
