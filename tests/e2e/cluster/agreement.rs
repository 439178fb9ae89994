//! Forty pods on two nodes: addresses, Services, names, the way in and the way out.

use std::{collections::BTreeSet, time::Duration};

use enid_tests::{
    Place, kube,
    kube::Inside,
    traffic::{PORT, serve},
    wait_until,
};
use serde_json::json;
use vpclab::INTERNET_SERVER;

use crate::CLUSTER;

const BOUND: Duration = Duration::from_secs(60);
const NODE_PORT: u16 = 30080;
/// A proxy before the Service `web`, reached from outside by its own node only, so that it sees who asks.
const INGRESS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: { name: ingress, namespace: default }
data:
  haproxy.cfg: |
    defaults
      mode http
      timeout connect 5s
      timeout client 10s
      timeout server 10s
    frontend outside
      bind :8080
      option forwardfor
      default_backend pods
    backend pods
      server web web.default.svc.cluster.local:80
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: ingress, namespace: default }
spec:
  replicas: 1
  selector: { matchLabels: { app: ingress } }
  template:
    metadata: { labels: { app: ingress } }
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: proxy
          image: localhost/haproxy:1
          imagePullPolicy: Never
          readinessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1 }
          volumeMounts: [{ name: config, mountPath: /etc/haproxy }]
      volumes: [{ name: config, configMap: { name: ingress } }]
---
apiVersion: v1
kind: Service
metadata: { name: ingress, namespace: default }
spec:
  type: NodePort
  externalTrafficPolicy: Local
  selector: { app: ingress }
  ports: [{ name: http, port: 80, targetPort: 8080, nodePort: 30081 }]
"#;

#[test]
fn forty_pods_are_reached_and_reach_others_and_leave_nothing() {
    let cluster = &*CLUSTER;
    let (lab, nodes) = (cluster.lab(), cluster.nodes().unwrap());
    kube::serve_http(cluster, "web", 40).unwrap();
    assert_eq!(kube::wait_for_agreement(cluster).unwrap(), 41, "forty, and the one that resolves names");
    let pods = kube::pods(cluster, Some("app=web")).unwrap();
    let devices = kube::devices(cluster, &pods).unwrap();
    let kinds: BTreeSet<(&str, bool)> = devices.iter().map(|(pod, device)| (pod.node.as_str(), *device == 0)).collect();
    assert_eq!(kinds.len(), 4, "each node has pods on ENIs of both kinds: {devices:?}");

    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "type": "NodePort",
            "selector": { "app": "web" },
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "nodePort": NODE_PORT }],
        },
    });
    cluster.apply(&service.to_string()).unwrap();
    // One pod of each node and kind of ENI asks by the Service's name, from inside its container.
    for (node, is_primary) in kinds {
        let (pod, _) = devices.iter().find(|(pod, device)| pod.node == node && (**device == 0) == is_primary).unwrap();
        let (namespace, name) = pod.name.split_once('/').unwrap();
        let ask = "curl -s -m 3 http://web.default.svc.cluster.local/hostname";
        let mut answered = BTreeSet::new();
        wait_until(BOUND, || {
            let thirty = format!("for n in $(seq 30); do {ask}; echo; done");
            let names =
                cluster.kubectl(&["-n", namespace, "exec", name, "--", "sh", "-c", &thirty]).unwrap_or_default();
            answered.extend(names.split_whitespace().map(str::to_owned));
            answered.len() == 40
        })
        .unwrap_or_else(|_| panic!("{}: only {} of 40 pods have answered: {answered:?}", pod.name, answered.len()));
        // As the node, out into the Internet.
        let server = serve(Place { lab, name: "inet" }, &[]).unwrap();
        let inside = Inside::of(&nodes, pod).unwrap();
        let answer = inside.spot().ask(INTERNET_SERVER, PORT).unwrap();
        let node = lab.state().nodes.iter().find(|known| known.name == pod.node).unwrap();
        assert_eq!(answer.client, node.public_address, "{}", pod.name);
        drop(server);
    }
    // From outside the cluster and the VPC, by either node.
    for node in &lab.state().nodes {
        for (place, address) in [("inet", &node.public_address), ("peer", &node.address)] {
            let url = format!("http://{address}:{NODE_PORT}/hostname");
            let name = lab.run(place, "curl", &["-s", "-S", "-m", "5", &url]).unwrap();
            assert!(name.starts_with("web-"), "{place} {url}: {name}");
        }
    }

    // By a proxy that reads HTTP, as an ingress: the client's own address gets as far as that, and is told to the pod.
    cluster.apply(INGRESS).unwrap();
    kube::rolled_out(cluster, "deployment/ingress").unwrap();
    let proxy = kube::pods(cluster, Some("app=ingress")).unwrap().remove(0);
    let node = lab.state().nodes.iter().find(|node| node.name == proxy.node).unwrap();
    let url = format!("http://{}:30081/header?key=X-Forwarded-For", node.public_address);
    let asked = || lab.run("inet", "curl", &["-s", "-S", "-f", "-m", "5", &url]);
    wait_until(BOUND, || asked().is_ok()).unwrap_or_else(|_| panic!("{:?}", asked()));
    assert_eq!(asked().unwrap().trim(), INTERNET_SERVER);

    cluster.kubectl(&["delete", "service/web", "service/ingress", "configmap/ingress"]).unwrap();
    kube::remove(cluster, "ingress").unwrap();
    kube::remove(cluster, "web").unwrap();
    assert_eq!(kube::wait_for_agreement(cluster).unwrap(), 1);
    for node in &nodes {
        let wanted = || kube::pool(cluster, &node.name).is_ok_and(|(addresses, enis)| addresses <= 14 && enis == 1);
        wait_until(Duration::from_secs(240), wanted)
            .unwrap_or_else(|_| panic!("{} keeps {:?}", node.name, kube::pool(cluster, &node.name)));
    }
    assert_eq!(lab.drops().unwrap().foreign_source, 0, "a packet left an ENI with an address that is not on it");
}
