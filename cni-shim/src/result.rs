//! What a successful ADD prints (CNI spec 1.1.0, section 5), in the words of the version asked for.

use std::net::Ipv4Addr;

use enid_datapath::pod::{GATEWAY, PodLink, Routes};
use serde_json::{Map, Value, json};

use crate::config::Config;

/// The result for this link, after what earlier plugins of the chain made.
pub fn render(config: &Config, link: &PodLink, routes: Routes, sandbox: &str) -> String {
    let mut result = config.prev_result.clone().unwrap_or_default();
    let before = result.get("interfaces").and_then(Value::as_array).map_or(0, Vec::len);
    let one = config.cni_version == "1.1.0";
    let mut host = json!({ "name": link.host_ifname, "mac": link.host_mac.to_string() });
    let mut pod = json!({ "name": link.pod_ifname, "mac": link.pod_mac.to_string(), "sandbox": sandbox });
    let mut address =
        json!({ "address": format!("{}/32", link.address), "gateway": GATEWAY.to_string(), "interface": before + 1 });
    let mut to_gateway = json!({ "dst": format!("{GATEWAY}/32") });
    let mut default = json!({ "dst": "0.0.0.0/0", "gw": GATEWAY.to_string() });
    if one {
        host["mtu"] = json!(link.mtu);
        pod["mtu"] = json!(link.mtu);
        to_gateway["scope"] = json!(253); // RT_SCOPE_LINK
    } else if config.cni_version.starts_with("0.") {
        address["version"] = json!("4");
    }
    append(&mut result, "interfaces", vec![host, pod]);
    append(&mut result, "ips", vec![address]);
    match routes {
        Routes::Main => append(&mut result, "routes", vec![to_gateway, default]),
        Routes::Own(table) if one => {
            (to_gateway["table"], default["table"]) = (json!(table), json!(table));
            append(&mut result, "routes", vec![to_gateway, default]);
        }
        // Older results cannot say which table a route is in.
        Routes::Own(_) => {}
    }
    if let Some(dns) = &config.dns {
        result.entry("dns").or_insert_with(|| dns.clone());
    }
    result.insert("cniVersion".to_owned(), json!(config.cni_version));
    Value::Object(result).to_string()
}

/// The configuration has been checked: what is there is a list, or null.
fn append(result: &mut Map<String, Value>, key: &str, items: Vec<Value>) {
    match result.entry(key).or_insert_with(|| json!([])) {
        Value::Array(list) => list.extend(items),
        other => *other = Value::Array(items),
    }
}

/// The address that a result names for an interface of the container, if it names one.
pub fn address_in(result: &Map<String, Value>, ifname: &str) -> Option<Ipv4Addr> {
    let interfaces = result.get("interfaces")?.as_array()?;
    result.get("ips")?.as_array()?.iter().find_map(|ip| {
        let index = usize::try_from(ip.get("interface")?.as_u64()?).ok()?;
        let interface = interfaces.get(index)?;
        let inside = interface.get("sandbox").and_then(Value::as_str).is_some_and(|sandbox| !sandbox.is_empty());
        if !inside || interface.get("name")?.as_str()? != ifname {
            return None;
        }
        ip.get("address")?.as_str()?.split('/').next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use enid_datapath::Mac;

    use super::*;

    fn rendered(version: &str, more: &str) -> Value {
        let text = format!(r#"{{"cniVersion":"{version}","name":"enid"{more}}}"#);
        let config = Config::parse(text.as_bytes()).unwrap();
        let link = PodLink {
            host_ifname: "eni0123456789a".to_owned(),
            host_mac: Mac([10, 0, 0, 0, 0, 1]),
            pod_ifname: "eth0".to_owned(),
            pod_mac: Mac([14, 0, 0, 0, 0, 1]),
            address: Ipv4Addr::new(10, 0, 1, 20),
            mtu: 9001,
            group: 0x656e_0000,
        };
        serde_json::from_str(&render(&config, &link, Routes::Main, "/run/netns/p")).unwrap()
    }

    #[test]
    fn each_version_gets_its_own_words() {
        for version in crate::version::SUPPORTED {
            let result = rendered(version, "");
            assert_eq!(result["cniVersion"], version);
            assert_eq!(result["ips"][0]["version"].as_str(), version.starts_with("0.").then_some("4"), "{version}");
            assert_eq!(result["interfaces"][1]["mtu"].as_u64(), (version == "1.1.0").then_some(9001), "{version}");
            assert_eq!(result["interfaces"][0].get("sandbox"), None);
            assert_eq!(address_in(result.as_object().unwrap(), "eth0"), Some(Ipv4Addr::new(10, 0, 1, 20)));
            assert_eq!(address_in(result.as_object().unwrap(), "eth1"), None);
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
