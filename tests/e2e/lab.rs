//! The lab itself: it drops what EC2's network drops, follows EC2, and leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{path::Path, process::Command, time::Duration};

use enid_tests::{Backend, Lab, LabConfig, Place, program, wait_until};
use vpclab::{INTERNET_SERVER, State, ec2, folder};

const BOUND: Duration = Duration::from_secs(10);

fn vpclab(args: &[&str]) -> (bool, String) {
    let output = Command::new(program("vpclab").unwrap()).args(args).output().unwrap();
    (
        output.status.success(),
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
    )
}

/// Processes whose command line contains this text.
fn processes(text: &str) -> Vec<String> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(text))
        .collect()
}

#[test]
fn the_vpc_checks_sources_and_follows_ec2() {
    let lab = Lab::up(&LabConfig::default()).unwrap();
    let (node, other) = (Place::node(&lab, 0), Place::node(&lab, 1));
    node.sh(&format!("ping -n -c1 -W2 {}", lab.node(1).address)).unwrap();
    node.sh(&format!("ping -n -c1 -W2 {INTERNET_SERVER}")).unwrap();
    // A source that EC2 did not assign is dropped and counted.
    assert_eq!(lab.drops().unwrap().foreign_source, 0);
    node.sh("ip addr add 10.0.1.99/32 dev lo").unwrap();
    let ping_from_it = format!("ping -n -c1 -W1 -I 10.0.1.99 {}", lab.node(1).address);
    assert!(node.sh(&ping_from_it).is_err());
    assert_eq!(lab.drops().unwrap().foreign_source, 1);
    // An ENI that EC2 attaches has a link on the node; one that it detaches has none.
    let created = lab
        .ec2("CreateNetworkInterface", &[("SubnetId", &lab.node(0).subnet_id), ("SecondaryPrivateIpAddressCount", "2")])
        .unwrap();
    let eni = ec2::first(&created, "networkInterfaceId").unwrap();
    let instance = &lab.node(0).instance_id;
    let attach = [("NetworkInterfaceId", eni.as_str()), ("InstanceId", instance), ("DeviceIndex", "1")];
    let attachment = ec2::first(&lab.ec2("AttachNetworkInterface", &attach).unwrap(), "attachmentId").unwrap();
    wait_until(BOUND, || node.sh("ip link show eth1").is_ok()).unwrap();
    lab.ec2("DetachNetworkInterface", &[("AttachmentId", &attachment)]).unwrap();
    wait_until(BOUND, || node.sh("ip link show eth1").is_err()).unwrap();
    // A node has its own standard paths.
    node.sh("touch /etc/cni/net.d/here /var/lib/enid/here").unwrap();
    assert!(other.sh("ls /etc/cni/net.d/here").is_err());
    assert!(!Path::new("/var/lib/enid/here").exists());
}

#[test]
fn the_vpc_follows_an_address_from_eni_to_eni_and_repeats_a_failed_round() {
    let lab = Lab::up(&LabConfig { ec2: Backend::Model, ..LabConfig::default() }).unwrap();
    let (node, other) = (Place::node(&lab, 0), Place::node(&lab, 1));
    // A link has the name of the second: a round that creates the first fails at it, until that link is gone.
    node.sh("ip link add eth2 type veth peer name taken").unwrap();
    let create = || {
        let created = lab.ec2("CreateNetworkInterface", &[("SubnetId", &lab.node(0).subnet_id)]).unwrap();
        ec2::first(&created, "networkInterfaceId").unwrap()
    };
    let mut enis = [create(), create()];
    enis.sort(); // in the lab's order
    let [first, second] = enis;
    for (eni, index) in [(&second, "2"), (&first, "1")] {
        let instance = &lab.node(0).instance_id;
        let attach = [("NetworkInterfaceId", eni.as_str()), ("InstanceId", instance), ("DeviceIndex", index)];
        lab.ec2("AttachNetworkInterface", &attach).unwrap();
    }
    wait_until(BOUND, || node.sh("ip link show eth1").is_ok()).unwrap();
    node.sh("ip link del eth2").unwrap();
    wait_until(BOUND, || node.sh("ip link show eth2").is_ok()).unwrap();
    // Both calls within one round, or not: in the end the VPC has the address where EC2 has it, and only there.
    node.sh("ip addr add 10.0.1.77/32 dev lo; ip link set eth1 up; ip link set eth2 up").unwrap();
    node.sh("ip route add default via 10.0.1.1 dev eth2 onlink table 77; ip rule add from 10.0.1.77 lookup 77")
        .unwrap();
    let assign = |eni: &str| {
        lab.ec2("AssignPrivateIpAddresses", &[("NetworkInterfaceId", eni), ("PrivateIpAddress.1", "10.0.1.77")])
    };
    let port = |eni: &str| format!("dev p-{}", &eni[eni.len() - 12..]);
    let has_address = |eni: &str| lab.run("vpc", "ip", &["route", "show", "10.0.1.77"]).unwrap().contains(&port(eni));
    assign(&first).unwrap();
    wait_until(BOUND, || has_address(&first)).unwrap();
    let unassign = [("NetworkInterfaceId", first.as_str()), ("PrivateIpAddress.1", "10.0.1.77")];
    lab.ec2("UnassignPrivateIpAddresses", &unassign).unwrap();
    assign(&second).unwrap();
    wait_until(BOUND, || has_address(&second) && !has_address(&first)).unwrap();
    wait_until(BOUND, || other.sh("ping -n -c1 -W1 10.0.1.77").is_ok()).unwrap();
}

#[test]
fn metadata_requires_a_token_and_keeps_its_hop_limit() {
    let lab = Lab::up(&LabConfig { nodes: 1, ..LabConfig::default() }).unwrap();
    let node = Place::node(&lab, 0);
    let ask = |script: &str| {
        node.sh(&format!("python3 - <<'P'\nimport urllib.request as u, urllib.error as e\nB='http://169.254.169.254/latest/'\ndef get(path, **h):\n  try: return u.urlopen(u.Request(B+path, headers=h), timeout=2).read().decode()\n  except e.HTTPError as x: return str(x.code)\ndef put(**h): return u.urlopen(u.Request(B+'api/token', headers=h, method='PUT'), timeout=2).read().decode()\n{script}\nP"))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(ask("print(get('meta-data/mac'))"), "401");
    let with_token = "t=put(**{'X-aws-ec2-metadata-token-ttl-seconds':'60'})\nprint(get('meta-data/local-ipv4', **{'X-aws-ec2-metadata-token':t}))";
    assert_eq!(ask(with_token), lab.node(0).address);
    // One hop further, the answer to the token's PUT does not arrive.
    node.sh("ip netns add far; ip link add near type veth peer name eth0 netns far; ip addr add 192.168.9.1/24 dev near; ip link set near up; ip -n far addr add 192.168.9.2/24 dev eth0; ip -n far link set eth0 up; ip -n far route add default via 192.168.9.1; echo 1 > /proc/sys/net/ipv4/ip_forward; nft add table ip far; nft 'add chain ip far out { type nat hook postrouting priority srcnat; }'; nft add rule ip far out oifname eth0 masquerade").unwrap();
    let far = "ip netns exec far python3 -c \"import urllib.request as u; print(len(u.urlopen(u.Request('http://169.254.169.254/latest/api/token', headers={'X-aws-ec2-metadata-token-ttl-seconds':'60'}, method='PUT'), timeout=2).read()))\"";
    assert!(node.sh(far).is_err());
    lab.set_imds(&vpclab::Faults { hop_limit: 2, ..vpclab::Faults::default() }).unwrap();
    node.sh(far).unwrap();
}

#[test]
fn a_killed_lab_leaves_nothing_and_the_name_of_a_running_one_is_refused() {
    let name = format!("killed{}", std::process::id());
    let (ok, output) = vpclab(&["up", "--name", &name, "--nodes", "1"]);
    assert!(ok, "{output}");
    let (ok, output) = vpclab(&["up", "--name", &name]);
    assert!(!ok && output.contains("is running already"), "{output}");
    let (ok, output) = vpclab(&["exec", "--name", &name, "node9", "--", "true"]);
    assert!(!ok && output.contains("node9") && output.contains("node0"), "{output}");
    let state = State::read(&name).unwrap();
    Command::new("kill").args(["-9", &state.serve_pid.to_string()]).status().unwrap();
    let pids = [state.vpc_pid, state.inet_pid, state.peer_pid, state.nodes[0].pid, state.localstack_pid];
    wait_until(BOUND, || pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}/ns")).join("net").exists())).unwrap();
    let (ok, output) = vpclab(&["down", "--name", &name]);
    assert!(ok, "{output}");
    assert!(!folder(&name).exists());
    assert_eq!(processes(&name), Vec::<String>::new());
}

#[test]
fn a_localstack_that_does_not_start_is_one_sentence_and_leaves_nothing() {
    for (python, words) in [("/none/such", "LocalStack is not installed"), ("/bin/false", "localstack ended at once")] {
        let name = format!("broken{}", std::process::id());
        let mut up = Command::new(program("vpclab").unwrap());
        let result = up.args(["up", "--name", &name]).env("VPCLAB_PYTHON", python).output().unwrap();
        let output = String::from_utf8_lossy(&result.stderr).into_owned();
        assert!(!result.status.success());
        assert!(output.contains(words) && output.trim().lines().count() == 1, "{output}");
        assert!(!folder(&name).exists());
        assert_eq!(processes(&name), Vec::<String>::new());
    }
}

#[test]
fn an_install_without_network_names_the_cause() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = std::env::temp_dir().join(format!("enid-install-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("localstack")).unwrap();
    for file in ["install", "requirements.lock"] {
        std::fs::copy(root.join("localstack").join(file), folder.join("localstack").join(file)).unwrap();
    }
    let unreachable = "http://127.0.0.1:9";
    let result = Command::new(folder.join("localstack/install"))
        .envs([
            ("https_proxy", unreachable),
            ("HTTPS_PROXY", unreachable),
            ("PIP_RETRIES", "0"),
            ("PIP_NO_CACHE_DIR", "1"),
        ])
        .envs([("PIP_INDEX_URL", "https://pypi.org/simple"), ("PIP_CONFIG_FILE", "/dev/null")])
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&result.stderr).into_owned();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(!result.status.success());
    assert!(output.contains("cannot be fetched") && output.contains("PyPI"), "{output}");
}
