//! `enid takeover --check`: what a take-over would do on this node, and what stands against it. It reads, and changes nothing.

use std::net::IpAddr;

use anyhow::bail;
use enid_datapath::{
    Family, Mac, marks,
    node::{conflict, eni::EniNet, found::Found},
    peer::{self, Rules},
};
use enid_ipamd::Ledger;
use ipnet::IpNet;
use serde::Serialize;

use super::{
    chains::{PARTS, TABLE, removal},
    enis::slot,
    evidence, file,
    plan::{Becomes, Evidence, Plan, plan},
    wait,
};
use crate::{
    aws::imds::Imds,
    host::{nft, xtables},
    print::{self, Output, column, wide},
    runtime::conflist,
    settings::Settings,
};

/// What would be done, and what stands against it.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Amazon's daemon serves the node: a take-over waits for its end.
    other_daemon_answers: bool,
    /// Pods whose links become ours.
    pods: Vec<Row>,
    /// Addresses of the file that no link carries.
    cooling: Vec<IpAddr>,
    /// What stays as it is.
    left: Vec<String>,
    /// What goes, in this order.
    removes: Vec<String>,
    /// What has to be mended first, one sentence each.
    against: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    pod: String,
    container: String,
    address: IpAddr,
    link: String,
    eni: String,
    /// Nobody knows for sure whose the address is: it is given to nobody as long as the link stands.
    withheld: Option<String>,
}

/// Prints the report.
///
/// # Errors
///
/// Kernel, file or metadata cannot be read, or something stands against a take-over.
pub async fn check(settings: &Settings, output: Output) -> anyhow::Result<()> {
    let report = read(settings).await?;
    print::show(output, &report, || table(&report, output))?;
    match report.against.len() {
        0 => Ok(()),
        1 => bail!("one thing stands against a take-over"),
        number => bail!("{number} things stand against a take-over"),
    }
}

async fn read(settings: &Settings) -> anyhow::Result<Report> {
    let mut report = Report { other_daemon_answers: wait::answers(settings), ..Report::default() };
    let (evidence, found) = evidence::begin(settings).await?;
    let imds = Imds::new();
    imds.wait_for_instance(settings.start_wait).await?;
    let evidence = evidence::complete(evidence, &imds, Ledger::default()).await?;
    let plan = plan(&evidence);
    report.of(&plan);
    for (backend, family) in xtables::EACH {
        match xtables::save(backend, family).await {
            Ok(saved) => report.chains(&saved, !evidence.branches.is_empty()),
            Err(failure) => report.against.push(format!("{failure:#}")),
        }
    }
    if nft::has_table(Family::V4, TABLE).await? {
        report.removes.push(format!("the nftables table ip {TABLE}"));
    }
    report.kernel(settings, &evidence, &plan, found);
    if let Some(folder) = conflist::egress_addresses(settings)?.filter(|folder| folder.exists()) {
        report.removes.push(format!("{}", folder.display()));
    }
    if file::is_theirs(&settings.backing_store) {
        report.removes.push(format!("what {} says", settings.backing_store.display()));
    }
    Ok(report)
}

impl Report {
    fn of(&mut self, plan: &Plan) {
        for pod in &plan.pods {
            let (of, container, withheld) = match &pod.becomes {
                // Among what stays.
                Becomes::Egress => continue,
                Becomes::Lease(key, of) => {
                    let of = of.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name)).unwrap_or_default();
                    (of, key.container.clone(), None)
                }
                Becomes::Withheld(why) => (String::new(), String::new(), Some(why.clone())),
            };
            let (link, eni) = (pod.link.ifname.clone(), pod.eni.to_string());
            let row = |address: &IpAddr| Row {
                pod: of.clone(),
                container: container.clone(),
                address: *address,
                link: link.clone(),
                eni: eni.clone(),
                withheld: withheld.clone(),
            };
            self.pods.extend(pod.link.addresses.iter().map(row));
        }
        self.against.extend(plan.refusals.iter().cloned());
        self.pods.sort_by_key(|row| row.address);
        self.cooling = plan.cooling.keys().copied().collect();
        self.left.clone_from(&plan.left);
    }

    fn chains(&mut self, saved: &str, branches: bool) {
        let lines = PARTS.iter().filter_map(|part| removal(*part, saved, branches));
        for lines in lines {
            let gone = lines.lines().filter_map(|line| line.strip_prefix("-D ").or(line.strip_prefix("-X ")));
            self.removes.extend(gone.map(|line| format!("iptables {line}")));
        }
    }

    /// Rules that go, and those that would be in the way.
    fn kernel(&mut self, settings: &Settings, evidence: &Evidence, plan: &Plan, found: Found) {
        let policy = &settings.steering.policy;
        let (mut enis, mut pool, mut slots) = (Vec::new(), Vec::<IpNet>::new(), plan.slots.clone());
        for facts in &evidence.enis {
            let slot = slot(facts, &evidence.ledger, &slots);
            slots.insert(facts.id.clone(), slot);
            let (table, mac) = (marks::route_table(facts.place.device_index, facts.place.card), Mac(facts.mac));
            let (primary, own_v6, mtu) = (facts.primary, facts.own_v6, settings.steering.eni_mtu);
            enis.push(EniNet { slot, mac, primary, own_v6, table, mtu });
            pool.extend(facts.blocks.iter().copied());
        }
        let of_enis = enis.iter().map(|eni| IpNet::from(IpAddr::from(eni.primary.addr())));
        let nets: Vec<IpNet> = pool.iter().copied().chain(of_enis).collect();
        let rules = [Rules::From, Rules::Rest].into_iter().flat_map(|which| peer::retire(which, &nets, &found));
        let rules = rules.filter(enid_datapath::Request::is_rule_removal).map(|rule| rule.to_string());
        let rules: Vec<String> = rules.map(|rule| rule.replacen("remove Amazon's ", "the ", 1)).collect();
        self.removes.extend(rules);
        let of_pods: Vec<u32> = evidence.pods.iter().map(|(link, _)| link.index).collect();
        let others = peer::without_its_own(found, &of_pods, &nets);
        self.against.extend(conflict::conflicts(&enis, &pool, policy, &others));
    }
}

fn table(report: &Report, output: Output) -> String {
    let mut text = String::new();
    let mut say = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    if report.other_daemon_answers {
        say("Amazon's VPC CNI serves this node; Enid waits until its daemon has gone.");
    }
    let withheld = report.pods.iter().filter(|pod| pod.withheld.is_some()).count();
    let leased = report.pods.len() - withheld;
    say(&format!("{leased} pods would be taken over, and {withheld} addresses in use given to nobody."));
    if !report.pods.is_empty() {
        let columns =
            [column("POD"), column("ADDRESS"), column("ENI"), column("LINK"), column("BECOMES"), wide("CONTAINER")];
        let rows = report.pods.iter().map(|Row { pod, container, address, eni, link, withheld }| {
            let becomes = withheld.as_ref().map_or("a lease".to_owned(), |why| format!("withheld: {why}"));
            [pod.clone(), address.to_string(), eni.clone(), link.clone(), becomes, container.clone()]
        });
        say(&print::table(output, columns, rows));
    }
    let cooling = report.cooling.iter().map(|address| format!("{address} cools: no link carries it"));
    for (title, lines) in [
        ("Addresses without a pod:", &cooling.collect::<Vec<_>>()),
        ("Stays as it is:", &report.left),
        ("Goes, when all of Enid stands:", &report.removes),
        ("Stands against it:", &report.against),
    ] {
        if !lines.is_empty() {
            say(title);
            lines.iter().for_each(|line| say(&format!("  {line}")));
        }
    }
    if report.against.is_empty() {
        say("Nothing stands against it.");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_goes_and_what_is_in_the_way() {
        let row = |pod: &str, last: u8, withheld: Option<&str>| Row {
            pod: pod.to_owned(),
            container: "c".to_owned(),
            address: [10, 0, 78, last].into(),
            link: format!("eni{last}"),
            eni: "eni-1".to_owned(),
            withheld: withheld.map(str::to_owned),
        };
        let report = Report {
            pods: vec![row("default/web-0", 4, None), row("", 5, Some("the file does not name it"))],
            cooling: vec![[10, 0, 78, 9].into()],
            removes: vec!["the rule 1536: from 10.0.78.4".to_owned()],
            against: vec!["the rule 100: from all lookup 99 catches packets of pods before our rules do".to_owned()],
            ..Report::default()
        };
        let text = table(&report, Output::Table);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "1 pods would be taken over, and 1 addresses in use given to nobody.");
        assert!(text.contains("default/web-0") && text.contains("withheld: the file does not name it"), "{text}");
        assert!(text.contains("Addresses without a pod:\n  10.0.78.9 cools"), "{text}");
        assert!(text.contains("Stands against it:\n  the rule 100"), "{text}");
        assert!(table(&Report::default(), Output::Table).ends_with("Nothing stands against it.\n"));
    }
}
