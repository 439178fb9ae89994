//! Metrics, alerts and the dashboard, with Prometheus itself; and Amazon's introspection paths.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::BTreeSet, path::Path, process::Command, sync::OnceLock, time::Duration};

use enid_tests::{Backend, Daemon, Lab, LabConfig, Place, Pod, wait_until};
use serde_json::Value;

const BOUND: Duration = Duration::from_secs(30);

fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| Lab::up(&LabConfig { nodes: 2, ec2: Backend::Model, ..LabConfig::default() }).unwrap())
}

fn in_repository(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path).display().to_string()
}

/// One that has served pods, and refused one.
fn a_node_with_pods(place: Place<'_>) -> Daemon {
    let daemon =
        Daemon::start(place, &[("MAX_ENI", "1"), ("WARM_IP_TARGET", "2"), ("IP_COOLDOWN_PERIOD", "1")]).unwrap();
    let pods: Vec<Pod> = (0..9).map(|number| Pod::new(0, &format!("pod-{number}"))).collect();
    pods.iter().for_each(|pod| drop(pod.add(place).unwrap()));
    let refused = Pod { config: enid_tests::pod::config("1.0.0", 1), ..Pod::new(0, "refused") };
    refused.make_namespace(place).unwrap();
    refused.refused(place, 11, &["eni_limit"]).unwrap();
    pods[0].del(place).unwrap();
    daemon
}

#[test]
fn promtool_finds_nothing_wrong_with_metrics_and_alerts() {
    let place = Place::node(lab(), 0);
    let _daemon = a_node_with_pods(place);
    // A counter by label has a series once something was counted.
    place.sh("ip rule del pref 512").unwrap();
    wait_until(BOUND, || place.metrics().is_ok_and(|page| page.contains("enid_repairs_total{"))).unwrap();
    let page = place.metrics().unwrap();
    let checked = place.sh("curl -sSf http://127.0.0.1:61678/metrics | promtool check metrics 2>&1 || true").unwrap();
    // Amazon's names are kept as they are.
    let ours: Vec<&str> = checked.lines().filter(|line| !line.starts_with("awscni_") && !line.is_empty()).collect();
    assert!(ours.is_empty(), "{ours:#?}");
    for name in [
        "enid_add_seconds_bucket{outcome=\"wired\"",
        "enid_add_seconds_count{outcome=\"eni_limit\"} 1",
        "enid_phase_seconds_count{operation=\"ADD\",outcome=\"done\",phase=\"address\"} 9",
        "enid_phase_seconds_count{operation=\"DEL\",outcome=\"done\",phase=\"link\"} 1",
        "enid_del_seconds_count{outcome=\"done\"} 1",
        "enid_add_waited_seconds_total{cause=\"eni_limit\"}",
        "enid_ec2_call_seconds_count{action=\"AssignPrivateIpAddresses\",class=\"pod_waits\",result=\"done\"}",
        "enid_ec2_bucket_ratio{action=\"AssignPrivateIpAddresses\"",
        "enid_addresses{state=\"assigned\"} 8",
        "enid_orphaned_addresses 0",
        "enid_build_info{version=",
        "process_resident_memory_bytes ",
        "awscni_ipamd_startup_duration_seconds_count{failure_reason=\"\",success=\"true\",with_api_server=\"false\"} 1",
        "awscni_ipamd_node_initialization_duration_seconds_count{success=\"true\"} 1",
        "awscni_connmark_backend{backend=\"nftables\"} 1",
        "awscni_connmark_reconcile_total{result=\"error\"} 0",
    ] {
        assert!(page.contains(name), "{name} is not in {page}");
    }
    let promtool = |arguments: &[&str]| {
        let output = Command::new("promtool").args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        said
    };
    let alerts = in_repository("charts/enid/alerts.yaml");
    assert!(promtool(&["check", "rules", &alerts]).contains("SUCCESS"));
    promtool(&["test", "rules", &in_repository("tests/prometheus/alerts.yaml")]);
    // An alert that no fault is played through, or that asks for a metric that is not there, would be none.
    let text = std::fs::read_to_string(&alerts).unwrap();
    for word in text.split(|letter: char| !(letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')) {
        // Those without a series at the moment are there with their help.
        let name = ["_count", "_bucket", "_sum"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
        let is_there = page.contains(&format!("\n# HELP {name} ")) || name == "enid_cause";
        assert!(!word.starts_with("enid_") || is_there, "{word} is no metric");
    }
    let played = std::fs::read_to_string(in_repository("tests/prometheus/alerts.yaml")).unwrap();
    let names: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() >= 10, "{names:?}");
    names.iter().for_each(|name| assert!(played.contains(&format!("alertname: {name}\n")), "{name} is not played"));
}

/// Each query of the dashboard has an answer from a Prometheus that has read the node.
#[test]
fn every_query_of_the_dashboard_has_an_answer() {
    let place = Place::node(lab(), 1);
    let _daemon = a_node_with_pods(place);
    // Something that was repaired, and something that is wrong.
    place.sh("ip rule del pref 512; ip route del default").unwrap();
    let folder = "/run/prometheus";
    place
        .sh(&format!(
            "mkdir -p {folder}
             printf 'global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: enid, static_configs: [{{targets: [\"127.0.0.1:61678\"]}}]}}]\n' > {folder}/config.yml"
        ))
        .unwrap();
    let mut prometheus = place.command("prometheus").unwrap();
    let arguments = [
        format!("--config.file={folder}/config.yml"),
        format!("--storage.tsdb.path={folder}/data"),
        "--web.listen-address=127.0.0.1:9090".to_owned(),
        "--log.level=error".to_owned(),
    ];
    let mut prometheus = prometheus.args(arguments).spawn().unwrap();
    let ask = |query: &str| -> anyhow::Result<Value> {
        let line = format!("curl -sS --get --data-urlencode 'query={query}' http://127.0.0.1:9090/api/v1/query");
        Ok(serde_json::from_str(&place.sh(&line)?)?)
    };
    let queries = queries();
    assert!(queries.len() >= 18, "{}", queries.len());
    let mut silent = BTreeSet::new();
    let all = wait_until(BOUND, || {
        silent = queries
            .iter()
            .filter(|query| {
                let answer = ask(query).unwrap_or_default();
                let results = answer["data"]["result"].as_array().map_or(0, Vec::len);
                answer["status"] != "success" || results == 0
            })
            .cloned()
            .collect();
        silent.is_empty()
    });
    prometheus.kill().unwrap();
    prometheus.wait().unwrap();
    all.unwrap_or_else(|_| panic!("without an answer: {silent:#?}"));
}

fn queries() -> BTreeSet<String> {
    let text = std::fs::read_to_string(in_repository("charts/enid/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().clone();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap().clone());
    targets.map(|target| target["expr"].as_str().unwrap().replace("[5m]", "[10s]").replace("[15m]", "[10s]")).collect()
}

#[test]
fn amazons_introspection_paths_are_served() {
    let lab = Lab::up(&LabConfig { name: format!("intro{}", std::process::id()), nodes: 1, ..LabConfig::default() });
    let lab = lab.unwrap();
    let place = Place::node(&lab, 0);
    let daemon =
        Daemon::start(place, &[("WARM_IP_TARGET", "2"), ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "hashrandom")]).unwrap();
    let pod = Pod::new(0, "shown");
    let (address, _) = pod.add(place).unwrap();
    let get = |path: &str| -> Value {
        serde_json::from_str(&place.sh(&format!("curl -sSf http://127.0.0.1:61679{path}")).unwrap()).unwrap()
    };
    let commands = get("/");
    assert_eq!(commands["AvailableCommands"].as_array().unwrap().len(), 4, "{commands}");
    assert_eq!(get("/v1/nothing"), commands);
    let card = get("/v1/enis")["0"].clone();
    assert_eq!(card["AssignedIPs"], 1, "{card}");
    let (_, eni) = card["ENIs"].as_object().unwrap().iter().next().unwrap();
    assert_eq!((&eni["IsPrimary"], &eni["DeviceNumber"]), (&true.into(), &0.into()));
    let block = &eni["AvailableIPv4Cidrs"][format!("{address}/32")];
    let shown = &block["IPAddresses"][&address];
    assert_eq!((&block["Cidr"]["Mask"], &block["IsPrefix"]), (&"/////w==".into(), &false.into()), "{card}");
    assert_eq!(shown["IPAMMetadata"]["k8sPodName"], "shown", "{card}");
    assert_eq!(shown["IPAMKey"]["containerID"], "", "what a DEL needs is not shown");
    assert_eq!(get("/v1/networkutils-env-settings")["AWS_VPC_K8S_CNI_RANDOMIZESNAT"], 1);
    assert_eq!(get("/v1/ipamd-env-settings")["WARM_IP_TARGET"], 2);
    let code = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:61679/v1/eni-configs";
    assert_eq!(place.sh(code).unwrap(), "404", "there is no API server");
    daemon.kill().unwrap();
    let _daemon = Daemon::start(place, &[("DISABLE_INTROSPECTION", "true")]).unwrap();
    assert!(place.sh("curl -sSf http://127.0.0.1:61679/v1/enis").is_err());
}
