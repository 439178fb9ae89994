//! The faults: how each is made, what has to be said, and how it ends.

use std::{collections::BTreeSet, net::Ipv4Addr};

use anyhow::Context;
use vpclab::model::Faults as Ec2;

use crate::fault::{Change, Fault, Pods, Where, pod};

const PLAIN: Fault = Fault {
    name: "",
    finding: "",
    beside: &[],
    add: None,
    is_told: false,
    settings: &[],
    is_well_before: true,
    pods: Pods::None,
    first: 0,
    before: Change::Nothing,
    begins: Change::Nothing,
    ends: Change::Nothing,
};

/// One that refuses ADDs once the addresses that are there are used up.
const OF_ADDS: Fault = Fault { is_told: true, pods: Pods::Then, ..PLAIN };

const WELL: Change = Change::Ec2(Ec2::default);

fn fails(action: &str, code: &str) -> Ec2 {
    Ec2 { fail: [(action.to_owned(), (1.0, code.to_owned()))].into(), ..Ec2::default() }
}

fn denies(action: &str) -> Ec2 {
    Ec2 { deny: BTreeSet::from([action.to_owned()]), ..Ec2::default() }
}

fn all() -> Vec<Ipv4Addr> {
    (1..255).map(|last| Ipv4Addr::new(10, 0, 1, last)).collect()
}

fn occupied(on: Where<'_>) -> anyhow::Result<()> {
    on.lab.occupy(&on.lab.node(0).subnet_id, &all())
}

fn vacated(on: Where<'_>) -> anyhow::Result<()> {
    on.lab.vacate(&on.lab.node(0).subnet_id, &all())
}

fn detached(on: Where<'_>) -> anyhow::Result<()> {
    let enis = on.place.enid("enis")?;
    let secondary = enis.as_array().and_then(|enis| enis.iter().find(|eni| eni["slot"] != 0));
    let id = secondary.and_then(|eni| eni["id"].as_str()).context("there is no second ENI")?.to_owned();
    let described = on.lab.ec2("DescribeNetworkInterfaces", &[("NetworkInterfaceId.1", &id)])?;
    let attachment = vpclab::ec2::first(&described, "attachmentId").context("it is not attached")?;
    on.lab.ec2("DetachNetworkInterface", &[("AttachmentId", &attachment)]).map(drop)
}

/// All of them.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "the subnet is full",
        finding: "subnet_full",
        add: Some("subnet_full"),
        begins: Change::By(occupied),
        ends: Change::By(vacated),
        ..OF_ADDS
    },
    Fault {
        name: "EC2 throttles",
        finding: "throttled",
        add: Some("throttled"),
        begins: Change::Ec2(|| fails("AssignPrivateIpAddresses", "RequestLimitExceeded")),
        ends: WELL,
        ..OF_ADDS
    },
    Fault {
        name: "AssignPrivateIpAddresses is denied",
        finding: "denied",
        add: Some("denied"),
        begins: Change::Ec2(|| denies("AssignPrivateIpAddresses")),
        ends: WELL,
        ..OF_ADDS
    },
    Fault {
        name: "CreateNetworkInterface is denied",
        finding: "denied",
        add: Some("denied"),
        begins: Change::Ec2(|| denies("CreateNetworkInterface")),
        ends: WELL,
        ..OF_ADDS
    },
    Fault {
        name: "AttachNetworkInterface is denied",
        finding: "denied",
        add: Some("denied"),
        begins: Change::Ec2(|| denies("AttachNetworkInterface")),
        ends: WELL,
        ..OF_ADDS
    },
    Fault {
        name: "DescribeNetworkInterfaces is denied",
        finding: "denied",
        begins: Change::Ec2(|| denies("DescribeNetworkInterfaces")),
        ends: WELL,
        ..PLAIN
    },
    Fault {
        name: "EC2 refuses for a reason of its own",
        finding: "ec2_error",
        add: Some("ec2_error"),
        begins: Change::Ec2(|| fails("AssignPrivateIpAddresses", "OperationNotPermitted")),
        ends: WELL,
        ..OF_ADDS
    },
    Fault {
        name: "the account's quota of ENIs is used up",
        finding: "account_limit",
        add: Some("account_limit"),
        begins: Change::Ec2(|| fails("CreateNetworkInterface", "NetworkInterfaceLimitExceeded")),
        ends: WELL,
        ..OF_ADDS
    },
    Fault {
        name: "the clock is wrong",
        finding: "clock",
        add: Some("clock"),
        begins: Change::Ec2(|| fails("AssignPrivateIpAddresses", "RequestExpired")),
        ends: WELL,
        ..OF_ADDS
    },
    Fault {
        name: "EC2 is down",
        finding: "ec2_unreachable",
        add: Some("ec2_unreachable"),
        begins: Change::Ec2(|| Ec2 { down: true, ..Ec2::default() }),
        ends: WELL,
        ..OF_ADDS
    },
    Fault {
        name: "the subnet has no /28, and no single address either",
        finding: "subnet_full",
        add: Some("subnet_full"),
        settings: &[("ENABLE_PREFIX_DELEGATION", "true"), ("WARM_PREFIX_TARGET", "0"), ("WARM_IP_TARGET", "1")],
        // A single address of each /28 is left, and they are used up as well.
        begins: Change::By(occupied),
        ends: Change::By(vacated),
        ..OF_ADDS
    },
    Fault {
        name: "ModifyNetworkInterfaceAttribute is denied",
        finding: "denied",
        add: Some("denied"),
        begins: Change::Ec2(|| denies("ModifyNetworkInterfaceAttribute")),
        ends: WELL,
        ..OF_ADDS
    },
    Fault {
        name: "CreateTags is denied from the start",
        finding: "denied",
        add: Some("denied"),
        beside: &["not_ready"],
        is_well_before: false,
        before: Change::Ec2(|| denies("CreateTags")),
        ends: WELL,
        ..OF_ADDS
    },
    Fault {
        name: "EC2 throttles the creation of ENIs",
        finding: "throttled",
        add: Some("throttled"),
        begins: Change::Ec2(|| fails("CreateNetworkInterface", "RequestLimitExceeded")),
        ends: WELL,
        ..OF_ADDS
    },
    Fault {
        name: "an ENI cannot be attached",
        finding: "ec2_error",
        add: Some("ec2_error"),
        begins: Change::Ec2(|| fails("AttachNetworkInterface", "IncorrectState")),
        ends: WELL,
        ..OF_ADDS
    },
    Fault {
        name: "EC2 is silent",
        finding: "ec2_unreachable",
        add: Some("ec2_unreachable"),
        begins: Change::Ec2(|| Ec2 { silent: true, ..Ec2::default() }),
        ends: WELL,
        ..OF_ADDS
    },
    Fault {
        name: "an operator has frozen writes",
        finding: "writes_frozen",
        add: Some("writes_frozen"),
        settings: &[("ENID_ADMIN", "true")],
        begins: Change::By(|on| ordered(on, "freeze")),
        ends: Change::By(|on| ordered(on, "unfreeze")),
        ..OF_ADDS
    },
    Fault {
        name: "the plugin's folder is read-only, and the plugin gone",
        finding: "host_files",
        add: Some("host_files"),
        begins: Change::Sh("rm /opt/cni/bin/enid-cni; mount --bind /opt/cni/bin /opt/cni/bin; mount -o remount,bind,ro /opt/cni/bin"),
        ends: Change::Sh("umount /opt/cni/bin"),
        ..OF_ADDS
    },
    Fault {
        name: "the node is at its limit of ENIs",
        finding: "eni_limit",
        add: Some("eni_limit"),
        is_told: true,
        settings: &[("MAX_ENI", "1"), ("MAX_PODS", "11")],
        pods: Pods::All,
        ends: Change::By(|on| deleted(on, 2)),
        ..PLAIN
    },
    Fault {
        name: "every free address is cooling",
        finding: "cooldown",
        add: Some("cooldown"),
        is_told: true,
        settings: &[("MAX_ENI", "1"), ("MAX_PODS", "11"), ("IP_COOLDOWN_PERIOD", "20"), ("MINIMUM_IP_TARGET", "9")],
        pods: Pods::Then,
        begins: Change::By(|on| {
            let pods: Vec<_> = (0..9).map(|number| enid_tests::Pod::new(0, &format!("cool-{number}"))).collect();
            pods.iter().try_for_each(|pod| pod.add(on.place).map(drop))?;
            pods.iter().try_for_each(|pod| pod.del(on.place))
        }),
        ..PLAIN
    },
    Fault {
        name: "the settings forbid to ask EC2",
        finding: "provisioning_off",
        add: Some("provisioning_off"),
        is_told: true,
        settings: &[("DISABLE_NETWORK_RESOURCE_PROVISIONING", "true")],
        // A node whose addresses somebody else assigns.
        before: Change::By(|on| assigned(on, "2")),
        pods: Pods::All,
        ends: Change::By(|on| assigned(on, "3")),
        ..PLAIN
    },
    Fault {
        name: "no subnet is tagged",
        finding: "no_subnet",
        add: Some("no_subnet"),
        // Without the primary ENI fewer pods fit.
        beside: &["max_pods", "not_ready"],
        is_well_before: false,
        before: Change::By(|on| tag_subnet(on, "0")),
        ends: Change::By(|on| tag_subnet(on, "1")),
        ..OF_ADDS
    },
    Fault {
        name: "instance metadata is away",
        finding: "metadata_unreadable",
        is_told: true,
        begins: Change::Imds(|| vpclab::Faults { down: true, ..vpclab::Faults::default() }),
        ends: Change::Imds(vpclab::Faults::default),
        ..PLAIN
    },
    Fault {
        name: "an ENI with pods is detached",
        finding: "eni_lost",
        // Its link is gone, too.
        beside: &["drift"],
        is_told: true,
        pods: Pods::Before,
        first: 12,
        begins: Change::By(detached),
        ends: Change::By(|on| deleted(on, 12)),
        ..PLAIN
    },
    Fault {
        name: "the daemon does not answer",
        finding: "daemon_away",
        begins: Change::Hang(true),
        ends: Change::Hang(false),
        ..PLAIN
    },
    Fault {
        name: "a firewall drops between pods",
        finding: "forward_dropped",
        add: Some("forward_dropped"),
        is_told: true,
        pods: Pods::Then,
        begins: Change::Sh(DROP),
        ends: Change::Sh("nft delete table ip filter"),
        ..PLAIN
    },
    Fault {
        name: "a firewall drops, and nobody tests",
        finding: "firewall",
        settings: &[("ENID_FORWARD_PROBE", "false")],
        begins: Change::Sh(DROP),
        ends: Change::Sh("nft delete table ip filter"),
        ..PLAIN
    },
    Fault {
        name: "the host's default route is gone",
        finding: "host_route",
        is_told: true,
        // The daemon asks EC2 by the host's way out.
        beside: &["ec2_unreachable", "metadata_unreadable"],
        begins: Change::Sh("ip route show default > /run/way-out; ip route del default"),
        ends: Change::Sh("ip route add $(cat /run/way-out)"),
        ..PLAIN
    },
    Fault {
        name: "a foreign rule catches pods' packets",
        finding: "conflict",
        begins: Change::Sh("ip rule add pref 100 from 10.0.1.0/24 lookup 77"),
        ends: Change::Sh("ip rule del pref 100"),
        ..PLAIN
    },
    Fault {
        name: "our table is deleted again and again",
        finding: "drift",
        begins: Change::Again("nft delete table ip enid"),
        ..PLAIN
    },
    Fault {
        name: "a rule is deleted again and again",
        finding: "drift",
        begins: Change::Again("ip rule del pref 512"),
        ..PLAIN
    },
    Fault {
        name: "rp_filter is changed again and again",
        finding: "drift",
        begins: Change::Again("sysctl -qw net.ipv4.conf.eth0.rp_filter=1"),
        ..PLAIN
    },
    Fault {
        name: "the MTU is changed again and again",
        finding: "drift",
        begins: Change::Again("ip link set eth0 mtu 1500"),
        ..PLAIN
    },
    Fault {
        name: "amazon-ec2-net-utils works on the ENIs",
        finding: "network_manager",
        settings: &[("MINIMUM_IP_TARGET", "12"), ("WARM_IP_TARGET", "1")],
        begins: Change::Sh(
            "for n in $(seq 100); do ip link show eth1 2>/dev/null | grep -q ',UP' && break; sleep 0.1; done
             ip route add default via 10.0.1.1 dev eth1 onlink table 10001; ip rule add pref 10001 to 192.0.2.1 lookup 10001",
        ),
        ends: Change::Sh("ip rule del pref 10001; ip route flush table 10001"),
        ..PLAIN
    },
    Fault {
        name: "the disk is full",
        finding: "disk_full",
        // It is told only while it lasts: what is written next may fit.
        add: Some("store_failed"),
        pods: Pods::Then,
        // As long as the last write has failed.
        beside: &["store_failed", "store_differs"],
        settings: &[("IP_COOLDOWN_PERIOD", "3")],
        before: Change::Sh("mkdir -p /var/lib/enid; mount -t tmpfs -o size=16m tmpfs /var/lib/enid"),
        begins: Change::By(|on| {
            on.place.sh("head -c 40m /dev/zero > /var/lib/enid/filler || true")?;
            // Until the file has to grow, writes fit into it.
            for number in 0..200 {
                let pod = enid_tests::Pod::new(0, &format!("disk-{number}"));
                pod.make_namespace(on.place)?;
                let (ok, answer, _) = pod.try_call(on.place, "ADD")?;
                pod.del(on.place)?;
                if !ok {
                    anyhow::ensure!(answer.to_string().contains("store_failed"), "{answer}");
                    return Ok(());
                }
            }
            anyhow::bail!("a full disk refuses nothing")
        }),
        ends: Change::Sh("rm /var/lib/enid/filler"),
        ..PLAIN
    },
    Fault {
        name: "the disk is nearly full",
        finding: "disk_full",
        before: Change::Sh("mkdir -p /var/lib/enid; mount -t tmpfs -o size=32m tmpfs /var/lib/enid"),
        begins: Change::Sh("head -c 24m /dev/zero > /var/lib/enid/filler"),
        ends: Change::Sh("rm /var/lib/enid/filler"),
        ..PLAIN
    },
    Fault {
        name: "a chained plugin sets MACs",
        finding: "chained_mac",
        begins: Change::Sh(
            "python3 - <<'END'
import json
path = '/etc/cni/net.d/05-enid.conflist'
with open(path) as file: held = json.load(file)
held['plugins'].append({'type': 'tuning', 'mac': '0e:00:00:00:00:01'})
with open(path, 'w') as file: json.dump(held, file)
END",
        ),
        ends: Change::Sh(
            "python3 - <<'END'
import json
path = '/etc/cni/net.d/05-enid.conflist'
with open(path) as file: held = json.load(file)
held['plugins'].pop()
with open(path, 'w') as file: json.dump(held, file)
END",
        ),
        ..PLAIN
    },
    Fault {
        name: "metadata does not show an ENI",
        finding: "metadata_differs",
        settings: &[("MINIMUM_IP_TARGET", "12"), ("WARM_IP_TARGET", "1")],
        begins: Change::Imds(|| vpclab::Faults { only_primary: true, ..vpclab::Faults::default() }),
        ends: Change::Imds(vpclab::Faults::default),
        ..PLAIN
    },
    Fault {
        name: "another configuration comes first",
        finding: "configuration_order",
        begins: Change::Sh("echo '{}' > /etc/cni/net.d/00-other.conflist"),
        ends: Change::Sh("rm /etc/cni/net.d/00-other.conflist"),
        ..PLAIN
    },
    Fault {
        name: "another process has the metrics' address",
        finding: "metrics_away",
        beside: &["not_ready", "still_growing", "starting"],
        is_well_before: false,
        before: Change::Sh(
            "setsid python3 -m http.server --bind 0.0.0.0 61678 > /dev/null 2>&1 & echo $! > /run/other
             for n in $(seq 100); do curl -s -o /run/answer 127.0.0.1:61678 && break; sleep 0.1; done",
        ),
        ends: Change::Sh("kill $(cat /run/other)"),
        ..PLAIN
    },
];

/// A firewall that drops what it does not know.
const DROP: &str =
    "nft 'table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; }'";

fn tag_subnet(on: Where<'_>, role: &str) -> anyhow::Result<()> {
    let subnet = &on.lab.node(0).subnet_id;
    let tag = [("ResourceId.1", subnet.as_str()), ("Tag.1.Key", "kubernetes.io/role/cni"), ("Tag.1.Value", role)];
    on.lab.ec2("CreateTags", &tag).map(drop)
}

/// Somebody else gives the node's ENI more addresses.
fn assigned(on: Where<'_>, count: &str) -> anyhow::Result<()> {
    let enis = on.lab.enis()?;
    let primary = enis.first().context("there is no ENI")?.id.clone();
    let count = [("NetworkInterfaceId", &*primary), ("SecondaryPrivateIpAddressCount", count)];
    on.lab.ec2("AssignPrivateIpAddresses", &count).map(drop)
}

/// An operator's order about writes.
fn ordered(on: Where<'_>, order: &str) -> anyhow::Result<()> {
    let enid = enid_tests::program("enid")?;
    on.place.sh(&format!("{} admin {order} writes", enid.display())).map(drop)
}

/// So many pods go.
fn deleted(on: Where<'_>, pods: usize) -> anyhow::Result<()> {
    (0..pods).try_for_each(|number| pod(on.lab, number).del(on.place))
}
