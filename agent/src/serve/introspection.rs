//! Amazon's introspection paths, for tools that read them: the same names and shapes, on a loopback address.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use anyhow::Context;
use axum::{Json, Router, http::StatusCode, routing::get};
use base64::{Engine, engine::general_purpose::STANDARD};
use enid_datapath::policy::{NodePorts, Ports, Translation};
use enid_ipamd::{AddressState, View};
use ipnet::IpNet;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::{
    core::handle::Handle,
    host::kernel::{Steering, route_table},
    kubernetes::{InForce, Own},
    serve::listen::Listen,
    settings::SETTINGS,
};

/// What is shown.
#[derive(Clone)]
pub struct Shown {
    /// To the core.
    pub handle: Handle,
    /// How packets are steered.
    pub settings: Steering,
    /// What is given, and by whom.
    pub given: watch::Receiver<InForce>,
    /// The node's object.
    pub eni_config: watch::Receiver<Option<Own>>,
}

const PATHS: [&str; 4] = ["/v1/enis", "/v1/eni-configs", "/v1/networkutils-env-settings", "/v1/ipamd-env-settings"];
/// A time that is not known, as Go writes it.
const NO_TIME: &str = "0001-01-01T00:00:00Z";

/// Serves them until the task is dropped; for ever idle without an address.
///
/// # Errors
///
/// The server ended.
pub async fn serve(address: Option<SocketAddr>, shown: Shown) -> anyhow::Result<()> {
    let Some(address) = address else { return std::future::pending().await };
    let listen = Listen { what: "introspection", setting: "INTROSPECTION_BIND_ADDRESS", address };
    let listener = listen.bind(|_| {}).await;
    let shown = Arc::new(shown);
    let of = |answer: fn(&Shown) -> Result<Json<Value>, StatusCode>| {
        let shown = shown.clone();
        get(move || async move { answer(&shown) })
    };
    let enis = {
        let shown = shown.clone();
        get(move || async move {
            let view = shown.handle.view().await.ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
            Ok::<_, StatusCode>(Json(enis(&view)))
        })
    };
    let router = Router::new()
        .route(PATHS[0], enis)
        .route(PATHS[1], of(eni_config))
        .route(PATHS[2], of(|shown| Ok(Json(of_packets(shown)))))
        .route(PATHS[3], of(|shown| Ok(Json(of_pool(shown)))))
        .fallback(|| async { Json(json!({ "AvailableCommands": PATHS })) });
    axum::serve(listener, router).await.context("the introspection server ended")
}

fn eni_config(shown: &Shown) -> Result<Json<Value>, StatusCode> {
    let own = shown.eni_config.borrow();
    let named = own.as_ref().map(|own| own.eni_config.name.clone());
    named.map(|name| Json(Value::String(name))).ok_or(StatusCode::NOT_FOUND)
}

fn value(shown: &Shown, name: &str) -> Value {
    let given = shown.given.borrow();
    let setting = SETTINGS.iter().find(|setting| setting.name == name);
    let value = setting.map(|setting| given.now.value(setting).0.to_owned()).unwrap_or_default();
    match (value.parse::<i64>(), value.parse::<bool>()) {
        (Ok(number), _) => number.into(),
        (_, Ok(switch)) => switch.into(),
        _ => value.into(),
    }
}

fn of_packets(shown: &Shown) -> Value {
    let Steering { policy, eni_mtu, .. } = &shown.settings;
    let ports = match policy.translation {
        Translation::External | Translation::Here(Ports::Kept) => 0,
        Translation::Here(Ports::Hashed) => 1,
        Translation::Here(Ports::FullyRandom) => 2,
    };
    json!({
        "AWS_EXTERNAL_SERVICE_CIDRS": policy.by_main.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "AWS_VPC_CNI_NODE_PORT_SUPPORT": policy.node_ports == NodePorts::SameWayBack,
        "AWS_VPC_ENI_MTU": eni_mtu,
        "AWS_VPC_K8S_CNI_CONNMARK": policy.marks.connmark(),
        "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS": value(shown, "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS"),
        "AWS_VPC_K8S_CNI_EXTERNALSNAT": policy.translation == Translation::External,
        "AWS_VPC_K8S_CNI_RANDOMIZESNAT": ports,
        "AWS_VPC_K8S_CNI_VETHPREFIX": value(shown, "AWS_VPC_K8S_CNI_VETHPREFIX"),
    })
}

fn of_pool(shown: &Shown) -> Value {
    let names = [
        "WARM_IP_TARGET",
        "WARM_ENI_TARGET",
        "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG",
        "AWS_MANAGE_ENIS_NON_SCHEDULABLE",
        "ENABLE_SUBNET_DISCOVERY",
    ];
    names.into_iter().map(|name| (name.to_owned(), value(shown, name))).collect::<Map<_, _>>().into()
}

/// By network card, the ENIs with their blocks and the addresses in use.
fn enis(view: &View) -> Value {
    let mut used: BTreeMap<IpNet, Map<String, Value>> = BTreeMap::new();
    for seen in view.addresses() {
        if seen.state == AddressState::Available {
            continue;
        }
        let lease = view.leases().find(|(_, lease)| lease.addresses().any(|held| held == seen.address));
        let pod = lease.and_then(|(_, lease)| lease.pod.as_ref());
        let network = lease.map(|(key, _)| key.network.as_str()).unwrap_or_default();
        let interfaces = lease.map_or(1, |(key, _)| view.of_container(key).count());
        let address = json!({
            "Address": seen.address.to_string(),
            // What a DEL needs is left out, as Amazon's leaves it out.
            "IPAMKey": { "networkName": network, "containerID": "", "ifName": "" },
            "IPAMMetadata": {
                "k8sPodNamespace": pod.map(|pod| pod.namespace.as_str()).unwrap_or_default(),
                "k8sPodName": pod.map(|pod| pod.name.as_str()).unwrap_or_default(),
                "interfacesCount": interfaces,
            },
            "AssignedTime": NO_TIME,
            "UnassignedTime": NO_TIME,
        });
        used.entry(seen.block).or_default().insert(seen.address.to_string(), address);
    }
    let mut cards: BTreeMap<String, (u64, u64, Map<String, Value>)> = BTreeMap::new();
    for (_, eni) in &view.enis {
        let facts = &eni.facts;
        let block = |net: &IpNet| {
            let (mask, whole) = match net {
                IpNet::V4(net) => (net.netmask().octets().to_vec(), net.prefix_len() == 32),
                IpNet::V6(net) => (net.netmask().octets().to_vec(), net.prefix_len() == 128),
            };
            let cidr = json!({ "IP": net.network().to_string(), "Mask": STANDARD.encode(mask) });
            let addresses = used.get(net).cloned().unwrap_or_default();
            (
                net.to_string(),
                json!({ "Cidr": cidr, "IPAddresses": addresses, "IsPrefix": !whole, "AddressFamily": "" }),
            )
        };
        let of = |is_v4: bool| -> Map<String, Value> {
            eni.blocks.iter().filter(|net| net.addr().is_ipv4() == is_v4).map(block).collect()
        };
        let shown = json!({
            "ID": facts.id.to_string(),
            "IsPrimary": facts.place.is_primary(),
            "IsTrunk": false,
            "IsEFA": false,
            "DeviceNumber": facts.place.device_index,
            "AvailableIPv4Cidrs": of(true),
            "IPv6Cidrs": of(false),
            "IsExcludedForPodIPs": eni.excluded,
            "RouteTableID": route_table(eni),
            "SubnetID": facts.subnet_id.to_string(),
        });
        let (total, assigned, enis) = cards.entry(facts.place.card.to_string()).or_default();
        *total += eni.sums.total;
        *assigned += eni.sums.assigned;
        enis.insert(facts.id.to_string(), shown);
    }
    let card =
        |(card, (total, assigned, enis))| (card, json!({ "TotalIPs": total, "AssignedIPs": assigned, "ENIs": enis }));
    cards.into_iter().map(card).collect::<Map<_, _>>().into()
}
