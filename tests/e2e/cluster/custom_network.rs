//! Custom networking: pods are in the subnet and the security groups of their node's ENIConfig, which is edited while they
//! talk.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Context, ensure};
use enid_tests::{
    consistency,
    kube::{self, KubePod},
    wait_until,
};
use ipnet::IpNet;
use kubelab::Cluster;
use serde_json::json;
use vpclab::ec2::Eni;

use crate::{
    CLUSTER,
    disturbance::rolled_out,
    handback::{ENIDS, given_back, in_phase, pod_of},
    traffic::Ends,
};

/// What is idle is detached a minute after it was needed last.
const DRAINED: Duration = Duration::from_secs(240);
/// The label and the annotation that name a node's ENIConfig.
const KEY: &str = "k8s.amazonaws.com/eniConfig";
/// The further subnets of the two nodes' zones.
pub const CIDRS: [&str; 2] = ["10.0.64.0/19", "10.0.96.0/19"];

/// The id of a subnet.
pub fn subnet(cluster: &Cluster, cidr: &str) -> String {
    let filter = [("Filter.1.Name", "cidr-block"), ("Filter.1.Value.1", cidr)];
    let answer = cluster.lab().ec2("DescribeSubnets", &filter).unwrap();
    vpclab::ec2::first(&answer, "subnetId").unwrap()
}

/// Whether an address is of a CIDR.
pub fn is_in(address: IpAddr, cidr: &str) -> bool {
    cidr.parse::<IpNet>().is_ok_and(|net| net.contains(&address))
}

/// An ENIConfig.
pub fn configure(cluster: &Cluster, name: &str, subnet: &str, group: &str) -> anyhow::Result<()> {
    let config = json!({
        "apiVersion": "crd.k8s.amazonaws.com/v1alpha1",
        "kind": "ENIConfig",
        "metadata": { "name": name },
        "spec": { "subnet": subnet, "securityGroups": [group] },
    });
    cluster.apply(&config.to_string()).map(drop)
}

/// The ENIs that these pods have their addresses on, as EC2 has them.
fn enis_of(cluster: &Cluster, pods: &[KubePod]) -> anyhow::Result<Vec<Eni>> {
    let enis = cluster.lab().enis()?;
    let of = |pod: &KubePod| {
        let carries = |eni: &&Eni| consistency::blocks(eni).any(|net| net.contains(&pod.address));
        enis.iter().find(carries).cloned().with_context(|| format!("EC2 has no ENI for {pod:?}"))
    };
    pods.iter().map(of).collect()
}

/// An error unless all pods of a node that a Deployment has are in this subnet and security group.
fn expect(cluster: &Cluster, app: &str, node: &str, subnet: &str, group: &str) -> anyhow::Result<()> {
    let mut pods = kube::pods(cluster, Some(&format!("app={app}")))?;
    pods.retain(|pod| pod.node == node);
    ensure!(!pods.is_empty(), "{app} has no pod on {node}");
    for eni in enis_of(cluster, &pods)? {
        ensure!(eni.subnet_id == subnet && eni.groups == [group], "{node}: {eni:?}, expected {subnet} and {group}");
    }
    Ok(())
}

#[test]
fn pods_are_in_the_subnet_and_groups_that_their_node_s_eniconfig_names() {
    let cluster = &*CLUSTER;
    let nodes = cluster.nodes().unwrap();
    let [first, second] = [&nodes[0].name, &nodes[1].name];
    let [subnet_a, subnet_b] = CIDRS.map(|cidr| subnet(cluster, cidr));
    let set = |kind: &str, node: &str, name: &str| {
        cluster.kubectl(&[kind, "node", node, "--overwrite", &format!("{KEY}{name}")]).map(drop)
    };
    // The first node names none. Of the second the annotation comes before the label.
    configure(cluster, "default", &subnet_a, "sg-default").unwrap();
    configure(cluster, "annotated", &subnet_b, "sg-annotated").unwrap();
    set("annotate", second, "=annotated").unwrap();
    set("label", second, "=absent").unwrap();
    let settings = ["env.AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=true", "env.ENID_TAKE_OVER=true"];
    cluster.install_enid(&settings.iter().flat_map(|setting| ["--set", setting]).collect::<Vec<_>>()).unwrap();
    rolled_out(cluster).unwrap();
    kube::idle(cluster, "custom", 8).unwrap();
    expect(cluster, "custom", first, &subnet_a, "sg-default").unwrap();
    expect(cluster, "custom", second, &subnet_b, "sg-annotated").unwrap();
    kube::wait_for_agreement(cluster).unwrap();

    // A label of the first node, and then an edit of what it names, while pods of the old kinds talk.
    let custom = kube::pods(cluster, Some("app=custom")).unwrap();
    let of = |node: &str| custom.iter().find(|pod| pod.node == node).cloned().unwrap();
    let ends = Ends::between(cluster, vec![of(first), of(second)]).unwrap();
    let kept = || -> Vec<(String, Vec<String>)> {
        enis_of(cluster, &custom).unwrap().into_iter().map(|eni| (eni.id, eni.groups)).collect()
    };
    let before = kept();
    ends.lose_nothing_while(None, || {
        configure(cluster, "labelled", &subnet_a, "sg-labelled")?;
        set("label", first, "=labelled")?;
        kube::idle(cluster, "labelled", 4)?;
        expect(cluster, "labelled", first, &subnet_a, "sg-labelled")?;
        configure(cluster, "labelled", &subnet_a, "sg-edited")?;
        kube::idle(cluster, "edited", 4)?;
        expect(cluster, "edited", first, &subnet_a, "sg-edited")
    })
    .unwrap();
    assert_eq!(kept(), before, "pods that run stay where they are, and so do their ENIs");

    // The second node is given back to Amazon's VPC CNI, and taken over again.
    ends.lose_nothing_while(None, || {
        let node = &nodes[1];
        given_back(cluster, node)?;
        let daemon = pod_of(cluster, ENIDS, second)?;
        cluster.kubectl(&["-n", "kube-system", "delete", "pod", &daemon])?;
        in_phase(cluster, node, "Serving")?;
        kube::idle(cluster, "after", 4)?;
        expect(cluster, "after", second, &subnet_b, "sg-annotated")
    })
    .unwrap();
    assert_eq!(kept(), before, "after the take-over, too");
    kube::wait_for_agreement(cluster).unwrap();
    kube::remove(cluster, "after").unwrap();
    for app in ["custom", "labelled"] {
        kube::remove(cluster, app).unwrap();
    }
    let kinds = || -> BTreeSet<Vec<String>> {
        let enis = cluster.lab().enis().unwrap_or_default();
        enis.into_iter()
            .map(|eni| eni.groups)
            .filter(|groups| groups.iter().any(|it| it.starts_with("sg-d") || it.starts_with("sg-l")))
            .collect()
    };
    wait_until(DRAINED, || kinds().is_empty()).unwrap_or_else(|_| panic!("ENIs of old kinds stay: {:?}", kinds()));

    kube::remove(cluster, "edited").unwrap();
    set("label", first, "-").unwrap();
    set("label", second, "-").unwrap();
    set("annotate", second, "-").unwrap();
    // Without custom networking ENIs in other subnets are as good as any; those tags exclude them.
    for subnet in [&subnet_a, &subnet_b] {
        let tag = [("ResourceId.1", subnet.as_str()), ("Tag.1.Key", "kubernetes.io/role/cni"), ("Tag.1.Value", "0")];
        cluster.lab().ec2("CreateTags", &tag).unwrap();
    }
    cluster.install_enid(&[]).unwrap();
    rolled_out(cluster).unwrap();
    cluster.kubectl(&["delete", "eniconfigs", "--all"]).unwrap();
    let is_left = |eni: &Eni| [&subnet_a, &subnet_b].contains(&&eni.subnet_id);
    let left = || cluster.lab().enis().unwrap_or_default().into_iter().filter(is_left).count();
    wait_until(DRAINED, || left() == 0).unwrap_or_else(|_| panic!("{} ENIs stay", left()));
}
