//! What a successful ADD prints (CNI spec 1.1.0, section 5), in the words of the version asked for.

use std::net::IpAddr;

use enid_datapath::{
    Family,
    pod::{PodLink, Routes},
};
use serde_json::{Map, Value, json};

use crate::config::Config;

/// An interface that ADD made.
pub struct Wired {
    /// Its link.
    pub link: PodLink,
    /// Where its routes are.
    pub routes: Routes,
}

/// The result for these interfaces, after what earlier plugins of the chain made.
pub fn render(config: &Config, wired: &[Wired], sandbox: &str) -> String {
    let mut result = config.prev_result.clone().unwrap_or_default();
    wired.iter().for_each(|wired| describe(config, wired, sandbox, &mut result));
    if let Some(dns) = &config.dns {
        result.entry("dns").or_insert_with(|| dns.clone());
    }
    result.insert("cniVersion".to_owned(), json!(config.cni_version));
    Value::Object(result).to_string()
}

fn describe(config: &Config, Wired { link, routes }: &Wired, sandbox: &str, result: &mut Map<String, Value>) {
    let before = result.get("interfaces").and_then(Value::as_array).map_or(0, Vec::len);
    let newest = config.cni_version == "1.1.0";
    let mut host = json!({ "name": link.host_ifname, "mac": link.host_mac.to_string() });
    let mut pod = json!({ "name": link.pod_ifname, "mac": link.pod_mac.to_string(), "sandbox": sandbox });
    if newest {
        host["mtu"] = json!(link.mtu);
        pod["mtu"] = json!(link.mtu);
    }
    append(result, "interfaces", vec![host, pod]);
    for address in link.vpc_addresses() {
        let family = Family::of(address);
        let (gateway, length) = (family.gateway().to_string(), family.host_len());
        let mut ip = json!({ "address": format!("{address}/{length}"), "gateway": gateway, "interface": before + 1 });
        let mut to_gateway = json!({ "dst": format!("{gateway}/{length}") });
        let mut default = json!({ "dst": family.default_net(), "gw": gateway });
        if newest {
            to_gateway["scope"] = json!(253); // RT_SCOPE_LINK
        } else if config.cni_version.starts_with("0.") {
            ip["version"] = json!(if family == Family::V4 { "4" } else { "6" });
        }
        append(result, "ips", vec![ip]);
        match routes {
            Routes::Main => append(result, "routes", vec![to_gateway, default]),
            Routes::Own(table) if newest => {
                (to_gateway["table"], default["table"]) = (json!(table), json!(table));
                append(result, "routes", vec![to_gateway, default]);
            }
            // Older results cannot say which table a route is in.
            Routes::Own(_) => {}
        }
    }
}

/// The configuration has been checked: what is there is a list, or null.
fn append(result: &mut Map<String, Value>, key: &str, items: Vec<Value>) {
    match result.entry(key).or_insert_with(|| json!([])) {
        Value::Array(list) => list.extend(items),
        other => *other = Value::Array(items),
    }
}

/// The addresses that a result names for an interface of the container.
pub fn addresses_in(result: &Map<String, Value>, ifname: &str) -> Vec<IpAddr> {
    let list = |key: &str| result.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let interfaces = list("interfaces");
    let of_ours = |ip: &Value| {
        let index = usize::try_from(ip.get("interface")?.as_u64()?).ok()?;
        let interface = interfaces.get(index).filter(|interface| is_inside(interface))?;
        if interface.get("name")?.as_str()? != ifname {
            return None;
        }
        ip.get("address")?.as_str()?.split('/').next()?.parse().ok()
    };
    list("ips").iter().filter_map(of_ours).collect()
}

/// The interfaces of the container that a result names.
pub fn interfaces_in(result: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let all = result.get("interfaces").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    all.iter().filter(|interface| is_inside(interface)).filter_map(|interface| interface.get("name")?.as_str())
}

fn is_inside(interface: &Value) -> bool {
    interface.get("sandbox").and_then(Value::as_str).is_some_and(|sandbox| !sandbox.is_empty())
}

#[cfg(test)]
mod tests {
    use enid_datapath::Mac;

    use super::*;

    fn rendered(version: &str, more: &str) -> Value {
        let text = format!(r#"{{"cniVersion":"{version}","name":"enid"{more}}}"#);
        let config = Config::parse(text.as_bytes()).unwrap();
        let wired = [Wired { link: link(), routes: Routes::Main }];
        serde_json::from_str(&render(&config, &wired, "/run/netns/p")).unwrap()
    }

    fn link() -> PodLink {
        PodLink {
            host_ifname: "eni0123456789a".to_owned(),
            host_mac: Mac([10, 0, 0, 0, 0, 1]),
            pod_ifname: "eth0".to_owned(),
            pod_mac: Mac([14, 0, 0, 0, 0, 1]),
            address: "10.0.1.20".parse().unwrap(),
            second: None,
            local: None,
            mtu: 9001,
            group: 0x656e_0000,
        }
    }

    #[test]
    fn both_families_are_told_and_what_only_the_node_knows_is_not() {
        let config = Config::parse(br#"{"cniVersion":"0.4.0","name":"enid"}"#).unwrap();
        let (second, local) = (Some("2001:db8::5".parse().unwrap()), Some("169.254.172.9".parse().unwrap()));
        let further = PodLink { pod_ifname: "mNicIf1".to_owned(), second, local, ..link() };
        let wired = [link(), further].map(|link| Wired { link, routes: Routes::Main });
        let text = render(&config, &wired, "/run/netns/p");
        let result: Value = serde_json::from_str(&text).unwrap();
        let result = result.as_object().unwrap();
        assert_eq!(
            addresses_in(result, "mNicIf1"),
            ["10.0.1.20", "2001:db8::5"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
        assert_eq!(interfaces_in(result).collect::<Vec<_>>(), ["eth0", "mNicIf1"]);
        let ip = &result["ips"][2];
        assert_eq!((&ip["version"], &ip["gateway"], &ip["interface"]), (&json!("6"), &json!("fe80::1"), &json!(3)));
        assert!(!text.contains("169.254.172.9"), "{text}");
    }

    #[test]
    fn each_version_gets_its_own_words() {
        for version in crate::version::SUPPORTED {
            let result = rendered(version, "");
            assert_eq!(result["cniVersion"], version);
            assert_eq!(result["ips"][0]["version"].as_str(), version.starts_with("0.").then_some("4"), "{version}");
            assert_eq!(result["interfaces"][1]["mtu"].as_u64(), (version == "1.1.0").then_some(9001), "{version}");
            assert_eq!(result["interfaces"][0].get("sandbox"), None);
            let named = |ifname| addresses_in(result.as_object().unwrap(), ifname);
            assert_eq!(named("eth0"), ["10.0.1.20".parse::<IpAddr>().unwrap()]);
            assert!(named("eth1").is_empty());
        }
    }

    #[test]
    fn what_others_made_before_us_stays() {
        let more = r#","dns":{"nameservers":["10.0.0.2"]},"prevResult":{"interfaces":[{"name":"lo0","x":1}],"ips":[]}"#;
        let result = rendered("1.0.0", more);
        assert_eq!(result["interfaces"][0]["x"], 1);
        assert_eq!(result["ips"][0]["interface"], 2);
        assert_eq!(result["dns"]["nameservers"][0], "10.0.0.2");
    }
}
