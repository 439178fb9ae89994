//! Traffic between pods of both nodes and of ENIs of both kinds, while something is done to the cluster.

use std::time::Duration;

use anyhow::Context;
use enid_tests::{
    kube::{self, Inside, KubePod},
    traffic::{Counted, Flows, PORT, Ping, Stream, serve},
    wait_until,
};
use kubelab::{Cluster, Node};

/// A cooldown lasts half a minute (IP_COOLDOWN_PERIOD).
const BOUND: Duration = Duration::from_secs(90);

/// Pods between which traffic flows: of each node one on the primary ENI and one on another.
pub struct Ends {
    nodes: Vec<Node>,
    pods: Vec<KubePod>,
}

/// What flows between two pods.
struct Pair {
    what: String,
    stream: Stream,
    ping: Ping,
    flows: Flows,
}

impl Ends {
    /// Makes the pods; `name` is their Deployment's. Sixteen a node are more than one ENI of an m5.xlarge has addresses for.
    pub fn make(cluster: &Cluster, name: &str) -> anyhow::Result<Self> {
        let nodes = cluster.nodes()?;
        // While the primary's addresses are in their cooldown, pods get those of other ENIs.
        let no_cooldown = "curl -s http://127.0.0.1:61678/metrics | grep -q '^enid_cooling_ip_addresses 0$'";
        let is_over = || nodes.iter().all(|node| node.sh(no_cooldown).is_ok());
        wait_until(BOUND, is_over).context("addresses stay in their cooldown")?;
        // A node that was not ready a moment ago gets no pods as long as the node controller's taint is on it.
        let taints = "jsonpath={.items[*].spec.taints[*].key}";
        let takes_pods = || {
            let tainted = cluster.kubectl(&["get", "nodes", "-o", taints]);
            tainted.is_ok_and(|keys| !keys.contains("node.kubernetes.io/"))
        };
        wait_until(BOUND, takes_pods).context("a node takes no pods")?;
        kube::idle(cluster, name, 32)?;
        let all = kube::devices(cluster, &kube::pods(cluster, Some(&format!("app={name}")))?)?;
        let mut pods = Vec::new();
        for node in &nodes {
            for is_primary in [true, false] {
                let found = all.iter().find(|(pod, device)| pod.node == node.name && (**device == 0) == is_primary);
                let (pod, _) = found.ok_or_else(|| anyhow::anyhow!("{} has no such pod: {all:?}", node.name))?;
                pods.push(pod.clone());
            }
        }
        Ok(Ends { nodes, pods })
    }

    /// These pods.
    pub fn between(cluster: &Cluster, pods: Vec<KubePod>) -> anyhow::Result<Self> {
        Ok(Ends { nodes: cluster.nodes()?, pods })
    }

    /// Lets traffic flow between all of them, but for those of a node that is left out, does something, and says what was
    /// lost.
    pub fn lose_nothing_while(
        &self,
        left_out: Option<&str>,
        act: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let used: Vec<&KubePod> = self.pods.iter().filter(|pod| Some(pod.node.as_str()) != left_out).collect();
        let inside: Vec<Inside<'_>> =
            used.iter().map(|pod| Inside::of(&self.nodes, pod)).collect::<anyhow::Result<_>>()?;
        let servers: Vec<_> =
            inside.iter().map(|pod| serve(pod.node(), &[pod.netns()])).collect::<anyhow::Result<Vec<_>>>()?;
        let mut pairs = Vec::new();
        for (from, spot) in used.iter().zip(&inside) {
            for to in used.iter().filter(|to| to != &from) {
                let (address, spot) = (to.address.to_string(), spot.spot());
                pairs.push(Pair {
                    what: format!("{} of {} to {} of {}", from.address, from.node, to.address, to.node),
                    stream: spot.stream(&address, PORT)?,
                    ping: spot.ping_on(&address)?,
                    flows: spot.flows(&address, PORT)?,
                });
            }
        }
        let acted = act();
        let mut lost = Vec::new();
        let mut total = Counted::default();
        for Pair { what, stream, ping, flows } in pairs {
            let counted = flows.end()?;
            let (sent, received) = ping.end()?;
            if let Err(error) = stream.end() {
                lost.push(format!("{what}: {error:#}"));
            }
            // The last echo may be under way.
            if counted.failed > 0 || counted.back < counted.sent || received + 1 < sent {
                lost.push(format!("{what}: {counted:?}, {received} of {sent} echoes"));
            }
            total.connections += counted.connections;
            total.sent += counted.sent;
        }
        drop(servers);
        acted?;
        anyhow::ensure!(lost.is_empty(), "{lost:#?}");
        println!("nothing lost of {} connections and {} datagrams", total.connections, total.sent);
        Ok(())
    }
}
