//! A daemon that hangs for ten minutes: its node stays Ready, its pods keep their network, and nothing is evicted. The
//! kubelet starts it again and again meanwhile, and each one hangs. ENID_HUNG_SECONDS=90 shortens it for development.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::{Duration, Instant};

use enid_tests::{
    Lab,
    kube::{self, Inside},
    traffic::{PORT, serve},
    wait_until,
};
use kubelab::{Cluster, ClusterConfig};

const BOUND: Duration = Duration::from_secs(90);

/// Stops every daemon that runs; how many did.
const HANG: &str = "n=0; for pid in $(pgrep -x -f 'enid agent'); do
    case $(cut -d' ' -f3 /proc/$pid/stat) in T) ;; *) kill -STOP $pid; n=$((n + 1));; esac
done; echo $n";

/// A node that goes away with its pods and its daemon: DELs end in time, and no ENI is detached, since the instance takes
/// them along.
fn drained_and_terminated(cluster: &Cluster) {
    let (lab, node) = (cluster.lab(), &cluster.lab().state().nodes[0]);
    let detached = || lab.ec2_counts().unwrap().get("DetachNetworkInterface").map_or(0, |counted| counted.calls);
    let before = detached();
    assert!(lab.enis().unwrap().len() >= 3, "the node has an ENI that is ours");
    // Idle pods end by themselves at once; within their grace of ten seconds their DELs have to end, too.
    let drain = ["drain", &node.name, "--ignore-daemonsets", "--force", "--grace-period=10", "--timeout=30s"];
    cluster.kubectl(&drain).unwrap();
    let failed = cluster.list("events", &["--field-selector=reason=FailedKillPod"]).unwrap();
    assert!(failed.is_empty(), "{failed:#?}");
    cluster.nodes().unwrap()[0].stop().unwrap();
    lab.ec2("TerminateInstances", &[("InstanceId.1", &node.instance_id)]).unwrap();
    wait_until(BOUND, || lab.enis().is_ok_and(|enis| enis.len() == 1)).unwrap_or_else(|_| panic!("{:?}", lab.enis()));
    assert_eq!(detached(), before);
}

#[test]
fn the_node_of_a_daemon_that_hangs_stays_ready() {
    let seconds = std::env::var("ENID_HUNG_SECONDS").map_or(600, |text| text.parse().unwrap());
    let config = ClusterConfig { name: "test-hung".to_owned(), nodes: 1, ..ClusterConfig::default() };
    Cluster::down(&config.name).unwrap();
    let lab = Lab::up(&config.lab()).unwrap();
    let cluster = Cluster::raise(config, lab, &mut |_, _| ()).unwrap();
    kube::idle(&cluster, "stays", 20).unwrap();
    let (nodes, pods) = (cluster.nodes().unwrap(), kube::pods(&cluster, Some("app=stays")).unwrap());
    let devices = kube::devices(&cluster, &pods).unwrap();
    let on = |is_primary: bool| devices.iter().find(|(_, device)| (**device == 0) == is_primary).unwrap().0;
    let (near, far) = (Inside::of(&nodes, on(true)).unwrap(), Inside::of(&nodes, on(false)).unwrap());
    let server = serve(far.node(), &[far.netns()]).unwrap();
    let flows = near.spot().flows(&on(false).address.to_string(), PORT).unwrap();

    // Ready, and since when; pods and their starts.
    let condition = "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status} \
                     {.items[*].status.conditions[?(@.type==\"Ready\")].lastTransitionTime}";
    let ready = || cluster.kubectl(&["get", "nodes", "-o", condition]).unwrap();
    let running = "jsonpath={range .items[*]}{.metadata.uid} {.status.phase} {.status.containerStatuses[*].restartCount}{\"\\n\"}{end}";
    let stays = || cluster.kubectl(&["get", "pods", "-l", "app=stays", "-o", running]).unwrap();
    let before = (ready(), stays());
    assert!(before.0.starts_with("True "), "{}", before.0);

    let (started, mut stopped) = (Instant::now(), 0);
    wait_until(Duration::from_secs(seconds) + BOUND, || {
        stopped += nodes[0].sh(HANG).unwrap().trim().parse::<u32>().unwrap();
        vpclab::pause(Duration::from_millis(500));
        started.elapsed() >= Duration::from_secs(seconds)
    })
    .unwrap();
    assert!(stopped >= 2, "the kubelet has started no daemon in place of one that hangs");
    assert_eq!((ready(), stays()), before, "after {seconds} s");
    let counted = flows.end().unwrap();
    assert!(counted.failed == 0 && counted.back == counted.sent && counted.connections > 100, "{counted:?}");
    drop(server);

    // And then it works again.
    nodes[0].sh("pkill -KILL -x -f 'enid agent'").unwrap();
    let rolled_out = || kube::idle(&cluster, "later", 1);
    wait_until(BOUND * 4, || rolled_out().is_ok()).unwrap();
    kube::wait_for_agreement(&cluster).unwrap();
    drained_and_terminated(&cluster);
    println!(
        "{seconds} s, {stopped} daemons stopped, {} connections and {} datagrams, none lost",
        counted.connections, counted.sent
    );
}
