//! What the datapath does to a real kernel: set up, set up again, changed, taken down. Needs root.
//!
//! Every namespace belongs to a process of the test and goes with it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use enid_datapath::{
    Family, Mac, Netlink, faults, identity, marks,
    netns::{self, Netns},
    node::{changes::changes, eni::EniNet, found::Found, rules},
    pod::{self, PodLink, WireError, host_end},
    policy::Policy,
    removal,
    ruleset::Ruleset,
};

/// A network namespace, held by a `cat` that ends when its input does.
struct Space {
    holder: Child,
}

impl Space {
    fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["-n", "sh", "-c", "ip link set lo up; echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "namespaces need root");
        Space { holder }
    }

    fn netns(&self) -> Netns {
        Netns::open(&PathBuf::from(format!("/proc/{}/ns/net", self.holder.id()))).unwrap()
    }

    fn run(&self, line: &str) -> (bool, String) {
        let output = Command::new("nsenter")
            .args(["-t", &self.holder.id().to_string(), "-n", "sh", "-ec", line])
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    fn sh(&self, line: &str) -> String {
        let (ok, said) = self.run(line);
        assert!(ok, "{line}: {said}");
        said
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        self.holder.wait().unwrap();
    }
}

fn link(container: &str, name: &str) -> PodLink {
    PodLink {
        host_ifname: name.to_owned(),
        host_mac: identity::host_mac("enid", container, "eth0"),
        pod_ifname: "eth0".to_owned(),
        pod_mac: identity::pod_mac("enid", container, "eth0"),
        address: "10.0.1.20".parse().unwrap(),
        second: None,
        local: None,
        mtu: 9001,
        group: marks::group(1),
    }
}

fn wire(link: &PodLink, host: &Space, pod: &Space) -> Result<pod::Pair, WireError> {
    let (host_ns, pod_ns) = (host.netns(), pod.netns());
    let (mut outside, mut inside) = (host_ns.netlink().unwrap(), pod_ns.netlink().unwrap());
    let pair = pod::create(link, &mut outside, &host_ns, &mut inside)?;
    pod::configure_inside(link, &pair, &mut outside, &mut inside)?;
    pod::configure_outside(link, &pair, &mut outside)?;
    Ok(pair)
}

fn found(netlink: &mut Netlink, families: &[Family]) -> Found {
    let (links, addresses) = (netlink.links().unwrap(), netlink.addresses().unwrap());
    Found::new(links, addresses, netlink.routes(families).unwrap(), netlink.rules().unwrap())
        .with_proxies(netlink.proxies().unwrap())
}

fn snapshot(space: &Space) -> String {
    space.sh("ip -o link | sed 's/^[0-9]*: //'; ip route show table all type unicast; ip neigh show nud permanent
         ip -6 route show table main; ip -6 rule")
}

#[test]
fn a_route_that_is_there_already_is_the_links_own_or_refuses_it() {
    let (host, pod) = (Space::new(), Space::new());
    let wanted = link("c1", "eni0000000001c");
    let halves = || {
        let (host_ns, pod_ns) = (host.netns(), pod.netns());
        let (mut outside, mut inside) = (host_ns.netlink().unwrap(), pod_ns.netlink().unwrap());
        let pair = pod::create(&wanted, &mut outside, &host_ns, &mut inside).unwrap();
        (pair, outside)
    };
    // A daemon that repairs has found the link before its plugin was done.
    let (pair, mut outside) = halves();
    host.sh("ip link set eni0000000001c up; ip route add 10.0.1.20/32 dev eni0000000001c");
    pod::configure_outside(&wanted, &pair, &mut outside).unwrap();
    // Somebody else's.
    host.sh("ip link add other type veth peer name rehto; ip link set other up");
    let (pair, mut outside) = halves();
    host.sh("ip route replace 10.0.1.20/32 dev other");
    let refused = pod::configure_outside(&wanted, &pair, &mut outside).unwrap_err();
    assert!(matches!(refused, WireError::AddressRouted(_)), "{refused}");
    assert!(!host.sh("ip -o link").contains("eni0000000001c"), "a refused link stays");
}

#[test]
fn a_pod_is_wired_again_and_goes_without_a_trace() {
    let (host, pod) = (Space::new(), Space::new());
    host.sh("ip addr add 10.0.1.10/32 dev lo");
    let before = (snapshot(&host), snapshot(&pod));
    let wanted = link("c1", "eni0000000001a");
    wire(&wanted, &host, &pod).unwrap();
    // The first packet gets through, without ARP at either end.
    host.sh("ping -n -c 1 -W 2 10.0.1.20; ip neigh show 10.0.1.20 | grep -q PERMANENT");
    pod.sh("ip neigh show 169.254.1.1 | grep -q PERMANENT");
    assert!(host.sh("ip -d link show eni0000000001a").contains(&wanted.host_mac.to_string()));
    assert!(pod.sh("ip addr show eth0").contains("10.0.1.20/32"));
    // An unanswered try is made anew; the result is one link.
    wire(&wanted, &host, &pod).unwrap();
    assert_eq!(host.sh("ip -o link show type veth | wc -l").trim(), "1");
    let faults = |host: &Space, pod: &Space| {
        faults::faults(&wanted, &mut host.netns().netlink().unwrap(), &mut pod.netns().netlink().unwrap()).unwrap()
    };
    assert_eq!(faults(&host, &pod), Vec::<String>::new());
    host.sh("ip route del 10.0.1.20/32");
    pod.sh("ip addr del 10.0.1.20/32 dev eth0");
    // With its last address the kernel drops the pod's routes too.
    let named = faults(&host, &pod).join("; ");
    for fault in ["no host route to 10.0.1.20", "lacks the address 10.0.1.20", "no default route"] {
        assert!(named.contains(fault), "{fault:?} is not in {named}");
    }
    let mut netlink = host.netns().netlink().unwrap();
    assert!(removal::remove_by_mac(wanted.host_mac, "another-name", &mut netlink).unwrap());
    assert!(!removal::remove_by_mac(wanted.host_mac, &wanted.host_ifname, &mut netlink).unwrap());
    assert_eq!((snapshot(&host), snapshot(&pod)), before);
}

#[test]
fn links_go_together_and_no_other_with_them() {
    let (host, pod) = (Space::new(), Space::new());
    let links: Vec<_> = (1..=6).map(|number| link(&format!("c{number}"), &format!("eni000000000{number}"))).collect();
    let make = |link: &PodLink| {
        pod::create(link, &mut host.netns().netlink().unwrap(), &host.netns(), &mut pod.netns().netlink().unwrap())
            .unwrap();
        pod.sh(&format!("ip link set eth0 name {}", link.host_ifname));
    };
    links.iter().for_each(make);
    let left = || host.sh("ip -o link show type veth | sed 's/^[0-9]*: //; s/@.*//' | sort").replace('\n', " ");
    let mut netlink = host.netns().netlink().unwrap();
    let wish = |link: &PodLink, name: &str| (link.host_mac, name.to_owned());
    let usual = |link: &PodLink| wish(link, &link.host_ifname);

    removal::remove_together(&[], &mut netlink).unwrap();
    removal::remove_together(&[(link("never", "x").host_mac, "eni0000000001".to_owned())], &mut netlink).unwrap();
    assert_eq!(left(), "eni0000000001 eni0000000002 eni0000000003 eni0000000004 eni0000000005 eni0000000006 ");
    // By its own name, under another's name, twice, and one that has gone already.
    host.sh("ip link del eni0000000006");
    let wishes = [
        usual(&links[0]),
        wish(&links[1], "eni0000000005"),
        usual(&links[0]),
        wish(&links[2], "nowhere"),
        usual(&links[5]),
    ];
    removal::remove_together(&wishes, &mut netlink).unwrap();
    assert_eq!(left(), "eni0000000004 eni0000000005 ");
    // Alone, and again.
    removal::remove_together(&[wish(&links[3], "nowhere")], &mut netlink).unwrap();
    removal::remove_together(&[usual(&links[3])], &mut netlink).unwrap();
    assert_eq!(left(), "eni0000000005 ");
    // One that an earlier try had only gathered is still seen as a pod's, and goes with the next.
    host.sh(&format!("ip link set eni0000000005 group {}", marks::GROUP_DELETED));
    assert_eq!(host_end::pod_links(&netlink.links().unwrap()).len(), 1);
    removal::remove_together(&[usual(&links[4])], &mut netlink).unwrap();
    assert_eq!(left(), "");
}

#[test]
fn names_that_are_taken() {
    let (host, old, new) = (Space::new(), Space::new(), Space::new());
    wire(&link("old", "eni0000000001a"), &host, &old).unwrap();
    // Another attachment's link has the name: it steps aside and stays.
    let wired = wire(&PodLink { address: "10.0.1.21".parse().unwrap(), ..link("new", "eni0000000001a") }, &host, &new);
    let wired = wired.unwrap();
    let aside = wired.moved_aside.unwrap();
    assert!(host.sh(&format!("ip link show {aside}")).contains(&identity::host_mac("enid", "old", "eth0").to_string()));
    // The container has an interface of that name: an error, and it stays as it was.
    let taken = Space::new();
    taken.sh("ip link add eth0 type veth peer name other; ip addr add 192.0.2.1/32 dev eth0");
    let refused = wire(&link("third", "eni0000000003c"), &host, &taken).unwrap_err();
    assert!(matches!(refused, WireError::InterfaceExists(_)), "{refused}");
    assert!(taken.sh("ip addr show eth0").contains("192.0.2.1"));
    // A live pod's address is asked for by mistake: its route stays, and nothing of the second is left.
    let second = Space::new();
    let before = snapshot(&host);
    let refused = wire(&link("fourth", "eni0000000004d"), &host, &second).unwrap_err();
    assert!(matches!(refused, WireError::AddressRouted(_)), "{refused}");
    assert_eq!(snapshot(&host), before);
    assert!(!host.run("ip link show eni0000000003c").0);
}

/// The successor's ADD and the predecessor's DEL, over one name.
#[test]
fn a_name_whose_link_goes_meanwhile() {
    let (host, old, new) = (Space::new(), Space::new(), Space::new());
    for round in 0..40 {
        let name = format!("eni{round:010}");
        wire(&link(&format!("old-{round}"), &name), &host, &old).unwrap();
        let mac = identity::host_mac("enid", &format!("old-{round}"), "eth0");
        let mut netlink = host.netns().netlink().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| removal::remove_by_mac(mac, &name, &mut netlink).unwrap());
            let successor = PodLink { address: "10.0.1.21".parse().unwrap(), ..link(&format!("new-{round}"), &name) };
            wire(&successor, &host, &new).unwrap_or_else(|error| panic!("{round}: {error}"));
        });
        host.sh("for link in $(ip -o link | grep -oE ' (eni|old)[0-9a-f]+'); do ip link del $link; done");
    }
}

fn eni(slot: u32, last: u8, address: &str, table: u32) -> EniNet {
    let (mac, primary) = (Mac([2, 0, 0, 0, 0, last]), address.parse().unwrap());
    EniNet { slot, mac, primary, own_v6: None, table, mtu: 9001 }
}

#[test]
fn enis_are_set_up_once_and_repaired() {
    let host = Space::new();
    host.sh("ip link add eth0 address 02:00:00:00:00:01 type veth peer name p0
         ip link add eth1 address 02:00:00:00:00:02 type veth peer name p1
         ip addr add 10.0.1.10/24 dev eth0; ip link set eth0 up; ip link set p0 up; ip link set p1 up
         ip route add default via 10.0.1.1
         ip addr add 10.0.1.77/24 dev eth1");
    let enis =
        [eni(0, 1, "10.0.1.10/24", marks::route_table(0, 0)), eni(1, 2, "10.0.1.11/24", marks::route_table(1, 0))];
    let mut netlink = host.netns().netlink().unwrap();
    let mut apply = |enis: &[EniNet]| {
        let requests =
            changes(enis, &BTreeSet::new(), &[], &Policy::default(), &found(&mut netlink, &[Family::V4])).unwrap();
        netlink.apply(&requests).unwrap();
        requests.len()
    };
    assert!(apply(&enis) > 0);
    assert_eq!(apply(&enis), 0, "a second look finds nothing to do");
    let addresses = host.sh("ip -o -4 addr show dev eth1");
    assert!(addresses.contains("10.0.1.11/24") && !addresses.contains("10.0.1.77"), "{addresses}");
    assert!(!host.sh("ip route show table main").contains("dev eth1"));
    assert!(host.sh("ip route show table 2").contains("default via 10.0.1.1 dev eth1"));
    assert!(host.sh("ip rule").contains("from 10.0.1.11 lookup 2"));
    // What somebody takes away comes back.
    host.sh("ip rule del pref 512; ip route flush table 2; ip link set eth1 mtu 1500");
    assert_eq!(apply(&enis), 4);
    assert_eq!(apply(&enis), 0);
    // An ENI that is gone takes its rules along, and leaves the host's own at the same number.
    host.sh("ip rule add pref 32765 from 192.0.2.7 lookup 10; ip rule add pref 1025 fwmark 0x4000/0x4000 lookup 10
             ip rule add pref 32768 not iif lo lookup 10");
    assert_eq!(apply(&enis[..1]), 2);
    let rules = host.sh("ip rule");
    assert!(!rules.contains("lookup 2") && rules.contains("from 192.0.2.7 lookup 10"), "{rules}");
    assert_eq!(rules.matches("lookup 10").count(), 3, "{rules}");
    let missing = [eni(2, 9, "10.0.1.12/24", 3)];
    let found = found(&mut Netlink::open().unwrap(), &[Family::V4]);
    assert!(changes(&missing, &BTreeSet::new(), &[], &Policy::default(), &found).is_err());
}

/// Metadata may leave an ENI out, and its link may have lost its MAC while no daemon ran.
#[test]
fn an_eni_that_cannot_be_looked_at_keeps_its_rules_and_its_link_is_known_by_them() {
    let host = Space::new();
    host.sh("ip link add eth0 address 02:00:00:00:00:01 type veth peer name p0
         ip link add eth1 address 02:00:00:00:00:02 type veth peer name p1
         ip addr add 10.0.1.10/24 dev eth0; ip link set eth0 up; ip link set p0 up; ip link set p1 up");
    let enis =
        [eni(0, 1, "10.0.1.10/24", marks::route_table(0, 0)), eni(1, 2, "10.0.1.11/24", marks::route_table(1, 0))];
    let (mut netlink, policy) = (host.netns().netlink().unwrap(), Policy::default());
    let mut changes_of = |enis: &[EniNet], spared: &[u32]| {
        let found = found(&mut netlink, &[Family::V4]);
        changes(enis, &spared.iter().copied().collect(), &[], &policy, &found).unwrap()
    };
    let set_up = changes_of(&enis, &[]);
    host.netns().netlink().unwrap().apply(&set_up).unwrap();
    assert!(changes_of(&enis[..1], &[1]).is_empty(), "its rules go though it is only not shown");
    assert_eq!(changes_of(&enis[..1], &[2]).len(), 2, "rules of an ENI that nobody needs");
    host.sh("ip link set eth1 address 02:00:00:00:00:99");
    let found = found(&mut host.netns().netlink().unwrap(), &[Family::V4]);
    let left: Vec<Mac> = rules::links_without_mac(&found, &enis, &policy).into_keys().collect();
    assert_eq!(left, [enis[1].mac]);
}

#[test]
fn enis_of_two_families_are_set_up_once_repaired_and_left_behind_clean() {
    let host = Space::new();
    host.sh("ip link add eth0 address 02:00:00:00:00:01 type veth peer name p0
         ip link add eth1 address 02:00:00:00:00:02 type veth peer name p1
         ip addr add 10.0.1.10/24 dev eth0; ip link set eth0 up; ip link set p0 up; ip link set p1 up; ip link set eth1 up
         ip -6 addr add 2001:db8:aa00:1::a/128 dev eth0 nodad; ip -6 route add default via fe80:ec2::1 dev eth0
         ip -6 addr add 2001:db8:aa00:1:7::5/80 dev eth1 nodad; ip -6 addr add 2001:db8:aa00:1:7::6/128 dev eth0 nodad");
    let eni = |slot: u32, last: u8, address: &str, own_v6: &str, table: u32| EniNet {
        own_v6: Some(own_v6.parse().unwrap()),
        ..eni(slot, last, address, table)
    };
    let enis = [
        eni(0, 1, "10.0.1.10/24", "2001:db8:aa00:1::a", marks::route_table(0, 0)),
        eni(1, 2, "10.0.1.11/24", "2001:db8:aa00:1::b", marks::route_table(1, 0)),
    ];
    let pool = ["10.0.1.32/28".parse().unwrap(), "2001:db8:aa00:1:7::/80".parse().unwrap()];
    let dual = Policy { of_vpc: Family::ALL.into(), ..Policy::default() };
    let mut netlink = host.netns().netlink().unwrap();
    let mut apply = |policy: &Policy| {
        let found = found(&mut netlink, &policy.families());
        let requests = changes(&enis, &BTreeSet::new(), &pool, policy, &found).unwrap();
        netlink.apply(&requests).unwrap();
        requests.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    apply(&dual);
    assert_eq!(apply(&dual), [""; 0], "a second look finds nothing to do");
    // Rules of one number stand in the order in which they came.
    let sorted = |rules: String| rules.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (rules, table) = (host.sh("ip -6 rule"), host.sh("ip -6 route show table 2"));
    for rule in ["512:", "1024:", "1536:", "32765:\tfrom 2001:db8:aa00:1::b lookup 2"] {
        assert!(rules.contains(rule), "{rule} is not in {rules}");
    }
    assert!(table.contains("fe80:ec2::1 dev eth1") && table.contains("default via fe80:ec2::1 dev eth1"), "{table}");
    let addresses = host.sh("ip -6 -o addr show scope global");
    assert!(
        addresses.contains("2001:db8:aa00:1::b/128") && addresses.contains("2001:db8:aa00:1::a/128"),
        "{addresses}"
    );
    assert!(!addresses.contains(":7::"), "an address for pods is the host's: {addresses}");
    let harms = [
        "ip -6 rule flush; ip -6 route flush table 2; ip -6 addr del 2001:db8:aa00:1::b/128 dev eth1",
        // Narrowed, inverted, and with an MTU of its own: they look like ours.
        "ip -6 rule del pref 1536; ip -6 rule add pref 1536 fwmark 0x41/0x7f iif lo lookup 2",
        "ip -6 rule del pref 1536; ip -6 rule add not pref 1536 fwmark 0x41/0x7f lookup 2",
        "ip -6 route replace default via fe80:ec2::1 dev eth1 table 2 proto static metric 1024 mtu 1400",
    ];
    for harm in harms {
        host.sh(harm);
        apply(&dual);
        apply(&dual); // the kernel may take the wrong one of two that it cannot tell apart
        assert_eq!(
            (sorted(host.sh("ip -6 rule")), host.sh("ip -6 route show table 2")),
            (sorted(rules.clone()), table.clone()),
            "{harm}"
        );
    }
    let found = found(&mut host.netns().netlink().unwrap(), &dual.families());
    assert_eq!(rules::slots(&dual, &found).into_iter().collect::<Vec<_>>(), [(Mac([2, 0, 0, 0, 0, 2]), 1)]);
    assert_eq!(apply(&dual), [""; 0]);
    // Nobody has IPv6 any more: our rules go, the kernel's own stays.
    apply(&Policy::default());
    let rules = host.sh("ip -6 rule");
    assert!(rules.contains("32766:") && !rules.contains("1536:") && !rules.contains("512:"), "{rules}");
    assert_eq!(apply(&Policy::default()), [""; 0]);
}

#[test]
fn a_pod_of_two_families_is_wired_found_whole_and_goes_without_a_trace() {
    let (host, pod) = (Space::new(), Space::new());
    host.sh("ip addr add 10.0.1.10/32 dev lo; ip -6 addr add 2001:db8:aa00:1::a/128 dev lo nodad
             sysctl -q net.ipv6.conf.all.forwarding=1");
    let before = (snapshot(&host), snapshot(&pod));
    let wanted = PodLink { second: Some("2001:db8:aa00:1:7::5".parse().unwrap()), ..link("c1", "eni0000000002f") };
    // As runtimes leave it.
    pod.sh("sysctl -q net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
    let (host_ns, pod_ns) = (host.netns(), pod.netns());
    let (mut outside, mut inside) = (host_ns.netlink().unwrap(), pod_ns.netlink().unwrap());
    let pair = pod::create(&wanted, &mut outside, &host_ns, &mut inside).unwrap();
    let own = Netns::own().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| pod_ns.allow_ipv6_and_back(Path::new(netns::SYS_NET), "eth0", &own)).join()
    })
    .unwrap()
    .unwrap();
    pod::configure_inside(&wanted, &pair, &mut outside, &mut inside).unwrap();
    pod::configure_outside(&wanted, &pair, &mut outside).unwrap();
    assert_eq!(faults::faults(&wanted, &mut outside, &mut inside).unwrap(), [""; 0]);
    // Neither end has looked for a double or for its neighbour, and packets pass at once.
    assert_eq!(pod.sh("ip -6 -o addr show scope global tentative"), "");
    host.sh("ping -c 1 -W 2 10.0.1.20; ping -c 1 -W 2 2001:db8:aa00:1:7::5");
    pod.sh("ip -6 route get 2001:db8::1 | grep -q 'via fe80::1 dev eth0'");
    host.sh("ip -6 route del 2001:db8:aa00:1:7::5");
    let faults = faults::faults(&wanted, &mut outside, &mut inside).unwrap();
    assert_eq!(faults, ["no host route to 2001:db8:aa00:1:7::5 over eni0000000002f"]);
    pod.sh("ip -6 addr del 2001:db8:aa00:1:7::5/128 dev eth0; ip -6 route del default");
    assert!(faults::faults(&wanted, &mut outside, &mut inside).unwrap().len() >= 3);
    assert!(removal::remove_by_mac(wanted.host_mac, &wanted.host_ifname, &mut outside).unwrap());
    assert_eq!((snapshot(&host), snapshot(&pod)), before);
}

#[test]
fn the_table_is_taken_by_the_kernel_and_replaced_whole() {
    let host = Space::new();
    let mut ruleset = Ruleset {
        policy: Policy::default(),
        primary_ifname: "eth0".to_owned(),
        secondary_ifnames: [(1, "eth1".to_owned())].into(),
        primary_address: "10.0.1.10".parse().unwrap(),
        primary_v6: None,
        native: vec!["10.0.0.0/16".parse().unwrap(), "10.1.0.0/16".parse().unwrap()],
        owner: (0..64).map(|slot| (slot, vec![format!("10.0.1.{}/32", 20 + slot).parse().unwrap()])).collect(),
    };
    let load = |ruleset: &Ruleset| {
        let there =
            Family::ALL.into_iter().filter(|family| host.run(&format!("nft list table {} enid", family.word())).0);
        let there = there.map(|family| (family, (0, 0))).collect();
        host.sh(&format!("nft -f - <<'T'\n{}\nT", ruleset.transaction(&there)))
    };
    load(&ruleset);
    assert!(host.sh("nft list table ip enid").contains(&ruleset.digest()));
    let once = host.sh("nft list table ip enid");
    load(&ruleset);
    assert_eq!(host.sh("nft list table ip enid"), once);
    // A second family, in the same transaction.
    ruleset.policy.of_vpc = Family::ALL.into();
    for (slot, nets) in &mut ruleset.owner {
        nets.push(format!("2001:db8:aa00:1:{slot}::/80").parse().unwrap());
    }
    load(&ruleset);
    assert!(host.sh("nft list table ip6 enid").contains("2001:db8:aa00:1:63:: : goto host63"));
    // Ranges that only the node knows.
    ruleset.policy.of_node = ["fd00::ac:0/118".parse().unwrap()].into();
    ruleset.primary_v6 = Some("2001:db8:aa00:1::a".parse().unwrap());
    load(&ruleset);
    ruleset.policy.of_vpc = [Family::V4].into();
    load(&ruleset);
    assert!(host.sh("nft list table ip6 enid").contains("snat to 2001:db8:aa00:1::a"));
    ruleset.policy.of_node.clear();
    ruleset.owner.clear();
    load(&ruleset);
    assert!(!host.sh("nft list table ip enid").contains("chain eni1"));
    assert!(!host.run("nft list table ip6 enid").0, "a table that is not wanted any more stays");
}

#[test]
fn connection_tracking_forgets_these_addresses_and_no_others() {
    let host = Space::new();
    let add = |entry: &str| host.sh(&format!("conntrack -I --timeout 600 {entry}"));
    let list = || {
        let listed = host.sh("{ conntrack -L -f ipv4; conntrack -L -f ipv6; } 2>/dev/null");
        listed.lines().count()
    };
    let forget = |addresses: &[&str]| {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        host.netns().conntrack().unwrap().forget(&addresses).unwrap()
    };
    assert_eq!(forget(&["10.0.1.20", "2001:db8::20"]), 0, "an empty table is fine");
    // Each of the four ends, of several protocols: a pod's own, one towards it, one that was SNATed to it and
    // one that was DNATed to it.
    add("-p tcp --state ESTABLISHED -s 10.0.1.20 -d 198.51.100.10 --sport 1000 --dport 443 --src-nat 10.0.1.10");
    add("-p udp -s 10.0.2.9 -d 10.0.1.20 --sport 53 --dport 53");
    add("-p udp -s 10.0.2.9 -d 172.20.0.10 --sport 54 --dport 53 --dst-nat 10.0.1.20");
    add("-p tcp --state TIME_WAIT -s 10.0.2.9 -d 203.0.113.1 --sport 55 --dport 80 --src-nat 10.0.1.20");
    add(
        "-u SEEN_REPLY -p icmp -s 10.0.1.20 -d 10.0.2.9 -r 10.0.2.9 -q 10.0.1.20 --icmp-type 8 --icmp-code 0 --icmp-id 7",
    );
    add("-p udp -s 10.0.1.20 -d 10.0.2.9 --sport 1 --dport 1 -w 5");
    add("-p udp -s 2001:db8::20 -d 2001:db8::1 --sport 53 --dport 53");
    // Neighbours in number and in tuple.
    add("-p tcp --state ESTABLISHED -s 10.0.1.2 -d 198.51.100.10 --sport 1000 --dport 443 --src-nat 10.0.1.10");
    add("-p udp -s 10.0.1.201 -d 10.0.1.120 --sport 53 --dport 53");
    add("-p udp -s 2001:db8::200 -d 2001:db8::1 --sport 53 --dport 53");
    assert_eq!(list(), 10);
    assert_eq!(forget(&["10.0.1.20"]), 6);
    assert_eq!(list(), 4);
    assert_eq!(forget(&["10.0.1.20", "10.0.1.99"]), 0);
    assert_eq!(forget(&["10.0.1.20", "2001:db8::20"]), 1);
    let left = host.sh("{ conntrack -L -f ipv4; conntrack -L -f ipv6; } 2>/dev/null");
    for kept in ["src=10.0.1.2 ", "src=10.0.1.201 ", "src=2001:db8::200 "] {
        assert!(left.contains(kept), "{kept} is not in {left}");
    }
    assert_eq!(list(), 3);
    // More than one datagram's worth.
    host.sh("for port in $(seq 1 400); do conntrack -I --timeout 600 -p udp -s 10.0.1.30 -d 10.0.2.9 --sport $port --dport 53; done 2>/dev/null");
    assert_eq!(list(), 403);
    assert_eq!(forget(&["10.0.1.30"]), 400);
    assert_eq!(list(), 3);
}

#[test]
fn a_fifo_in_a_namespaces_place_is_refused_at_once() {
    let path = std::env::temp_dir().join(format!("enid-fifo-{}", std::process::id()));
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let refused = enid_datapath::netns::Netns::open(&path).unwrap_err();
    std::fs::remove_file(&path).unwrap();
    assert!(refused.to_string().contains("not a namespace"), "{refused}");
}
