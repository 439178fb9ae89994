//! What the chart makes is taken by the real API server, every field of it.

use serde_json::json;

use crate::CLUSTER;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/enid");

/// A kind of the Prometheus operator, as far as the API server has to know it.
fn of_operator(kind: &str, plural: &str) -> String {
    let anything = json!({ "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.monitoring.coreos.com") },
        "spec": {
            "group": "monitoring.coreos.com",
            "scope": "Namespaced",
            "names": { "kind": kind, "plural": plural },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": anything }],
        },
    })
    .to_string()
}

#[test]
fn the_api_server_takes_what_every_file_of_values_makes() {
    let cluster = &*CLUSTER;
    let kinds = [("PodMonitor", "podmonitors"), ("PrometheusRule", "prometheusrules")];
    let crds = kinds.map(|(_, plural)| format!("crd/{plural}.monitoring.coreos.com"));
    for ((kind, plural), crd) in kinds.into_iter().zip(&crds) {
        cluster.apply(&of_operator(kind, plural)).unwrap();
        cluster.kubectl(&["wait", "--for=condition=Established", crd, "--timeout=30s"]).unwrap();
    }
    let mut files = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/chart")).unwrap() {
        let path = entry.unwrap().path();
        if !path.to_string_lossy().ends_with(".values.yaml") {
            continue;
        }
        let values = path.to_string_lossy();
        let made =
            cluster.helm(&["template", "tried", CHART, "--namespace", "kube-system", "--values", &values]).unwrap();
        let apply = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-"];
        cluster.kubectl_with(&apply, &made).unwrap_or_else(|refused| panic!("{values}: {refused:#}"));
        // A typo is refused, so a check is made.
        let typo = made.replace("terminationGracePeriodSeconds", "terminationGraceSeconds");
        assert!(cluster.kubectl_with(&apply, &typo).is_err(), "{values}");
        files += 1;
    }
    assert!(files >= 5, "{files}");
    crds.iter().for_each(|crd| drop(cluster.kubectl(&["delete", crd]).unwrap()));
}
