//! `enid takeover --check`: what would be done, and what stands against it.

use enid_tests::{
    Daemon, Place, kernel,
    peer::{self, Backend},
    program,
};
use serde_json::Value;

use super::{BOUND, lab, with_enis};

/// What it prints, and whether nothing stands against a take-over.
fn check(place: Place<'_>, output: &str) -> (String, bool) {
    let enid = program("enid").unwrap();
    let line = format!("code=0; {} takeover --check -o {output} 2>&1 || code=$?; echo \"exit $code\"", enid.display());
    let said = place.sh(&line).unwrap();
    let (said, code) = said.trim_end().rsplit_once("exit ").unwrap();
    (said.to_owned(), code == "0")
}

#[test]
fn the_table_says_what_would_be_done_and_what_is_in_the_way() {
    let lab = lab("checked");
    let place = Place::node(&lab, 0);
    let (said, fine) = check(place, "table");
    assert!(
        fine && said.contains("0 pods would be taken over") && said.contains("Nothing stands against it"),
        "{said}"
    );

    with_enis(place, &[("MINIMUM_IP_TARGET", "42"), ("WARM_ENI_TARGET", "0")]);
    let pods = peer::make(place, &[3, 3, 3], Backend::Nft).unwrap();
    let untouched = kernel::state(place).unwrap();
    let (said, fine) = check(place, "table");
    assert!(fine && said.contains("9 pods would be taken over, and 0 addresses"), "{said}");
    for goes in
        ["iptables POSTROUTING -m comment --comment \"AWS SNAT CHAIN\"", "iptables AWS-SNAT-CHAIN-0", "ip aws-cni"]
    {
        assert!(said.contains(goes), "{goes}: {said}");
    }
    let of_rules = format!("the rule 1536: from {}", pods[8].address);
    assert!(said.contains(&of_rules) && said.contains(&format!("the rule 512: to {} lookup main", pods[0].address)));

    // Without being told to, a daemon does not take them over.
    let endpoint = lab.state().ec2_endpoint.clone();
    let refusing = Daemon::spawn(place, &[("AWS_EC2_ENDPOINT", &endpoint)]).unwrap();
    let (code, log) = refusing.wait(BOUND).unwrap();
    assert!(
        code == Some(1) && log.contains("9 pods of Amazon's VPC CNI run here") && log.contains("ENID_TAKE_OVER"),
        "{log}"
    );
    assert_eq!(kernel::state(place).unwrap(), untouched);

    // A rule of somebody else, a pod that the file does not name, and an entry whose link has gone.
    let (unnamed, gone) = (&pods[4], &pods[7]);
    place
        .sh(&format!(
            "ip rule add pref 600 from {}/32 lookup 77
             python3 - <<'END'
import json
path = '/var/run/aws-node/ipam.json'
state = json.load(open(path))
state['allocations'] = [it for it in state['allocations'] if it['ipv4'] != '{}']
json.dump(state, open(path, 'w'))
END
             ip netns del {}",
            pods[0].address, unnamed.address, gone.pod.name
        ))
        .unwrap();
    let (said, fine) = check(place, "json");
    assert!(!fine, "{said}");
    let (json, refused) = said.rsplit_once("enid: ").unwrap();
    assert_eq!(refused.trim(), "one thing stands against a take-over");
    let report: Value = serde_json::from_str(json).unwrap();
    assert!(report["against"][0].as_str().unwrap().starts_with("the rule 600: from"), "{report}");
    let rows = report["pods"].as_array().unwrap();
    let row = |address: &str| rows.iter().find(|row| row["address"] == address);
    assert!(row(&unnamed.address).unwrap()["withheld"].as_str().unwrap().contains("the file does not name it"));
    assert!(row(&gone.address).is_none() && report["cooling"] == serde_json::json!([gone.address]), "{report}");
    assert_eq!(rows.len(), 8);
    place.sh("ip rule del pref 600").unwrap();
    let of_gone =
        |state: String| state.lines().filter(|line| !line.contains(&gone.ifname)).map(str::to_owned).collect();
    let (now, before): (Vec<String>, Vec<String>) = (of_gone(kernel::state(place).unwrap()), of_gone(untouched));
    assert_eq!(now, before, "it changes nothing");
}
