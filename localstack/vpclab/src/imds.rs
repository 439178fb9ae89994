//! IMDSv2 for all nodes, on 169.254.169.254 inside the VPC. A node is identified by the address that it asks from.
//!
//! Tokens, their lifetime and the hop limit are as on EC2 (Amazon EC2 User Guide, "Use the Instance
//! Metadata Service"): the answer to a token's PUT leaves with a TTL of the hop limit, so beyond that
//! many hops it never arrives.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    io::{BufReader, Write},
    net::{IpAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    fabric, fabric6,
    http::{HttpRequest, HttpResponse},
    state,
};

const TOKEN_MAX_SECONDS: u64 = 21_600;
const TTL: u32 = 64;

/// How metadata misbehaves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Faults {
    /// It shows what was true so long ago.
    pub lag_ms: u64,
    /// It closes every connection.
    pub down: bool,
    /// HttpPutResponseHopLimit.
    pub hop_limit: u32,
    /// CIDRs that the VPC has got besides its first.
    #[serde(default)]
    pub more_cidrs: Vec<String>,
    /// It leaves out every ENI but the primary.
    #[serde(default)]
    pub only_primary: bool,
    /// Tokens that were issued under another number are not known any more, as after a resume or on another host.
    #[serde(default)]
    pub tokens: u32,
}

impl Default for Faults {
    fn default() -> Self {
        Faults { lag_ms: 0, down: false, hop_limit: 1, more_cidrs: Vec::new(), only_primary: false, tokens: 0 }
    }
}

/// What it shows of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// EC2's id.
    pub instance_id: String,
    /// Such as m5.large.
    pub instance_type: String,
    /// Place of the primary's subnet in [`fabric::SUBNETS`].
    pub subnet: usize,
    /// EC2's id of the VPC.
    pub vpc_id: String,
    /// The VPC's CIDRs besides its first.
    pub more_cidrs: Vec<String>,
    /// Public address of the primary.
    pub public_address: String,
    /// Whether the VPC has IPv6.
    pub ipv6: bool,
    /// Attached ENIs.
    pub enis: Vec<EniView>,
}

/// What it shows of one ENI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EniView {
    /// EC2's id.
    pub id: String,
    /// Its link's MAC.
    pub mac: String,
    /// Network card.
    pub card: u32,
    /// Device index, on its card.
    pub device_index: u32,
    /// EC2's id of the subnet.
    pub subnet_id: String,
    /// Its place in [`fabric::SUBNETS`].
    pub subnet: usize,
    /// The primary address first; none if it is EFA-only.
    pub addresses: Vec<String>,
    /// /28 prefixes.
    pub prefixes: Vec<String>,
    /// IPv6 addresses outside of prefixes.
    pub ipv6_addresses: Vec<String>,
    /// /80 prefixes.
    pub ipv6_prefixes: Vec<String>,
    /// Security groups.
    pub groups: Vec<String>,
}

impl EniView {
    fn is_primary(&self) -> bool {
        (self.card, self.device_index) == (0, 0)
    }

    fn has(&self, address: IpAddr) -> bool {
        let within = |prefix: &String| prefix.parse::<IpNet>().is_ok_and(|prefix| prefix.contains(&address));
        self.addresses.contains(&address.to_string()) || self.prefixes.iter().any(within)
    }
}

/// All nodes, from that moment on.
type Published = (Instant, Vec<NodeView>);

/// The published views, young and old ones.
#[derive(Clone, Default)]
pub struct Metadata {
    views: Arc<Mutex<VecDeque<Published>>>,
    tokens: Arc<Mutex<BTreeMap<String, (String, Instant)>>>,
    /// The number of [`Faults::tokens`] under which they were issued.
    issue: Arc<Mutex<u32>>,
    /// How many requests each instance has made.
    requests: Arc<Mutex<BTreeMap<String, u64>>>,
    name: String,
}

/// Where the lab tells how many requests the instance has made that asks; EC2 has no such path.
pub const REQUESTS: &str = "/vpclab/requests";

impl Metadata {
    /// Nothing is published yet.
    pub fn new(name: &str) -> Self {
        Metadata { name: name.to_owned(), ..Metadata::default() }
    }

    /// This is true from now on.
    pub fn publish(&self, views: Vec<NodeView>) {
        let mut published = lock(&self.views);
        published.push_back((Instant::now(), views));
        while published.len() > 64 {
            published.pop_front();
        }
    }

    /// The youngest view that is at least this old.
    fn view(&self, lag: Duration) -> Vec<NodeView> {
        let published = lock(&self.views);
        let shown = published.iter().rev().find(|(at, _)| at.elapsed() >= lag).or_else(|| published.front());
        shown.map(|(_, views)| views.clone()).unwrap_or_default()
    }

    /// Answers until the process ends. The calling thread is inside the VPC's namespace.
    pub fn serve(&self, listener: &TcpListener) {
        for stream in listener.incoming().flatten() {
            let metadata = self.clone();
            thread::spawn(move || {
                // A broken connection is the client's affair.
                let _ = metadata.answer_all(&stream);
            });
        }
    }

    fn answer_all(&self, stream: &TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_nodelay(true)?;
        let peer = stream.peer_addr()?.ip();
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some(request) = HttpRequest::read(&mut reader)? {
            let faults = read_faults(&self.name);
            if faults.down {
                return Ok(());
            }
            if std::mem::replace(&mut *lock(&self.issue), faults.tokens) != faults.tokens {
                lock(&self.tokens).clear();
            }
            let node = self.node(peer, Duration::from_millis(faults.lag_ms));
            let node = node.map(|mut node| {
                node.more_cidrs.clone_from(&faults.more_cidrs);
                node.enis.retain(|eni| eni.is_primary() || !faults.only_primary);
                node
            });
            let answer = self.answer(&request, node.as_ref());
            let token = request.method == "PUT";
            stream.set_ttl(if token { faults.hop_limit } else { TTL })?;
            let mut out = stream;
            out.write_all(answer.render().as_bytes())?;
        }
        Ok(())
    }

    fn node(&self, peer: IpAddr, lag: Duration) -> Option<NodeView> {
        // The node is identified by what is true now; what it is shown may be older.
        let now = self.view(Duration::ZERO).into_iter().find(|node| node.enis.iter().any(|eni| eni.has(peer)))?;
        self.view(lag).into_iter().find(|node| node.instance_id == now.instance_id)
    }

    fn answer(&self, request: &HttpRequest, node: Option<&NodeView>) -> HttpResponse {
        let Some(node) = node else { return HttpResponse::status(404) };
        if request.path == REQUESTS {
            return ok(lock(&self.requests).get(&node.instance_id).copied().unwrap_or_default().to_string());
        }
        *lock(&self.requests).entry(node.instance_id.clone()).or_default() += 1;
        match request.method.as_str() {
            "PUT" if request.path == "/latest/api/token" => self.issue_token(request, node),
            "GET" => {
                let valid = request.header("x-aws-ec2-metadata-token").is_some_and(|token| self.is_valid(token, node));
                if !valid {
                    return HttpResponse::status(401);
                }
                document(node, &request.path).map_or_else(|| HttpResponse::status(404), ok)
            }
            "PUT" => HttpResponse::status(404),
            _ => HttpResponse::status(405),
        }
    }

    fn issue_token(&self, request: &HttpRequest, node: &NodeView) -> HttpResponse {
        if request.header("x-forwarded-for").is_some() {
            return HttpResponse::status(403);
        }
        let asked = request.header("x-aws-ec2-metadata-token-ttl-seconds").and_then(|ttl| ttl.parse().ok());
        let Some(ttl) = asked.filter(|ttl| (1..=TOKEN_MAX_SECONDS).contains(ttl)) else {
            return HttpResponse::status(400);
        };
        let mut tokens = lock(&self.tokens);
        tokens.retain(|_, (_, until)| *until > Instant::now());
        let token = format!("{}-{:x}-{}", node.instance_id, nanos(), tokens.len());
        tokens.insert(token.clone(), (node.instance_id.clone(), Instant::now() + Duration::from_secs(ttl)));
        HttpResponse { header: Some(("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", ttl.to_string())), ..ok(token) }
    }

    fn is_valid(&self, token: &str, node: &NodeView) -> bool {
        lock(&self.tokens)
            .get(token)
            .is_some_and(|(owner, until)| *owner == node.instance_id && *until > Instant::now())
    }
}

fn ok(body: String) -> HttpResponse {
    HttpResponse { body, ..HttpResponse::status(200) }
}

/// The answer to a path for a node; `None` is 404.
fn document(node: &NodeView, path: &str) -> Option<String> {
    let (_, _, zone) = fabric::SUBNETS[node.subnet];
    let region = &zone[..zone.len() - 1];
    let primary = node.enis.iter().find(|eni| eni.is_primary())?;
    if path == "/latest/dynamic/instance-identity/document" {
        let identity = serde_json::json!({
            "accountId": "000000000000", "region": region, "availabilityZone": zone,
            "instanceId": node.instance_id, "instanceType": node.instance_type,
            "privateIp": primary.addresses.first(), "architecture": "x86_64", "version": "2017-09-30",
        });
        return Some(identity.to_string());
    }
    let path = path.strip_prefix("/latest/meta-data")?.trim_matches('/');
    let mut root = vec![
        ("instance-id", node.instance_id.clone()),
        ("instance-type", node.instance_type.clone()),
        ("local-ipv4", primary.addresses.first()?.clone()),
        ("mac", primary.mac.clone()),
        ("public-ipv4", node.public_address.clone()),
        ("placement/availability-zone", zone.to_owned()),
        ("placement/region", region.to_owned()),
        ("services/domain", "amazonaws.com".to_owned()),
    ];
    root.extend(primary.ipv6_addresses.first().map(|address| ("ipv6", address.clone())));
    if let Some((_, value)) = root.iter().find(|(name, _)| *name == path) {
        return Some(value.clone());
    }
    let Some(rest) = path.strip_prefix("network/interfaces/macs") else {
        return listing(root.iter().map(|(name, _)| *name).chain(["network/interfaces/macs/"]), path);
    };
    let rest = rest.trim_matches('/');
    if rest.is_empty() {
        return Some(node.enis.iter().map(|eni| format!("{}/", eni.mac)).collect::<Vec<_>>().join("\n"));
    }
    let (mac, field) = rest.split_once('/').unwrap_or((rest, ""));
    let eni = node.enis.iter().find(|eni| eni.mac == mac)?;
    let fields = eni_fields(node, eni);
    match fields.iter().find(|(name, _)| *name == field) {
        Some((_, value)) => Some(value.clone()),
        None => listing(fields.iter().map(|(name, _)| *name), field),
    }
}

fn eni_fields(node: &NodeView, eni: &EniView) -> Vec<(&'static str, String)> {
    let (cidr, ..) = fabric::SUBNETS[eni.subnet];
    let mut fields = vec![
        ("device-number", eni.device_index.to_string()),
        ("interface-id", eni.id.clone()),
        ("mac", eni.mac.clone()),
        ("network-card", eni.card.to_string()),
        ("owner-id", "000000000000".to_owned()),
        ("security-group-ids", eni.groups.join("\n")),
        ("subnet-id", eni.subnet_id.clone()),
        ("subnet-ipv4-cidr-block", cidr.to_owned()),
        ("vpc-id", node.vpc_id.clone()),
        ("vpc-ipv4-cidr-block", fabric::VPC_CIDR.to_owned()),
        ("vpc-ipv4-cidr-blocks", [&[fabric::VPC_CIDR.to_owned()], &node.more_cidrs[..]].concat().join("\n")),
    ];
    let lists = [
        ("local-ipv4s", &eni.addresses),
        ("ipv4-prefix", &eni.prefixes),
        ("ipv6s", &eni.ipv6_addresses),
        ("ipv6-prefix", &eni.ipv6_prefixes),
    ];
    fields.extend(lists.into_iter().filter(|(_, list)| !list.is_empty()).map(|(name, list)| (name, list.join("\n"))));
    if node.ipv6 {
        fields.push(("subnet-ipv6-cidr-blocks", fabric::SUBNETS_V6[eni.subnet].0.to_owned()));
        fields.push(("vpc-ipv6-cidr-blocks", fabric6::VPC_CIDR_V6.to_owned()));
    }
    if eni.is_primary() {
        fields.push(("public-ipv4s", node.public_address.clone()));
    }
    fields
}

/// The next parts of the names below a folder, folders with a slash; `None` if nothing is below it.
fn listing<'a>(names: impl Iterator<Item = &'a str>, folder: &str) -> Option<String> {
    let mut lines: Vec<String> = names
        .filter_map(|name| {
            let below = if folder.is_empty() { name } else { name.strip_prefix(folder)?.strip_prefix('/')? };
            let first = below.split_inclusive('/').next()?;
            Some(first.to_owned())
        })
        .collect();
    lines.sort();
    lines.dedup();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// Changes the faults of a lab; its server reads them at every request.
pub fn write_faults(name: &str, faults: &Faults) -> anyhow::Result<()> {
    let path = state::folder(name).join("imds.json");
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(faults).context("cannot write JSON")?)
        .and_then(|()| fs::rename(&new, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn read_faults(name: &str) -> Faults {
    let text = fs::read(state::folder(name).join("imds.json")).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn nanos() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos()
}

/// A thread that panicked has left a view that is still complete.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeView {
        let eni = |index: u32| EniView {
            id: format!("eni-{index}"),
            mac: format!("02:00:00:00:00:0{index}"),
            device_index: index,
            subnet_id: "subnet-1".to_owned(),
            subnet: 0,
            addresses: vec![format!("10.0.1.1{index}"), format!("10.0.1.2{index}")],
            prefixes: if index == 0 { vec!["10.0.1.32/28".to_owned()] } else { vec![] },
            groups: vec!["sg-1".to_owned()],
            ..EniView::default()
        };
        NodeView {
            more_cidrs: Vec::new(),
            instance_id: "i-1".to_owned(),
            instance_type: "m5.large".to_owned(),
            public_address: "203.0.113.10".to_owned(),
            vpc_id: "vpc-1".to_owned(),
            subnet: 0,
            ipv6: false,
            enis: vec![eni(0), eni(1)],
        }
    }

    #[test]
    fn paths_are_answered_as_on_ec2() {
        let get = |path: &str| document(&node(), &format!("/latest/meta-data/{path}"));
        assert_eq!(get("instance-id").as_deref(), Some("i-1"));
        assert_eq!(get("placement/availability-zone").as_deref(), Some("us-east-1a"));
        assert_eq!(get("network/interfaces/macs/").as_deref(), Some("02:00:00:00:00:00/\n02:00:00:00:00:01/"));
        assert_eq!(
            get("network/interfaces/macs/02:00:00:00:00:01/local-ipv4s").as_deref(),
            Some("10.0.1.11\n10.0.1.21")
        );
        assert_eq!(get("network/interfaces/macs/02:00:00:00:00:01/ipv4-prefix"), None);
        let prefix = get("network/interfaces/macs/02:00:00:00:00:00/ipv4-prefix");
        assert_eq!(prefix.as_deref(), Some("10.0.1.32/28"));
        let asks = |address: &str| node().enis[0].has(address.parse().unwrap());
        assert!(asks("10.0.1.10") && asks("10.0.1.40") && !asks("10.0.1.48"));
        assert_eq!(get("network/interfaces/macs/02:00:00:00:00:09/mac"), None);
        assert_eq!(get("ipv6"), None);
        let fields = get("network/interfaces/macs/02:00:00:00:00:01").unwrap();
        assert!(fields.lines().any(|line| line == "local-ipv4s") && !fields.contains("ipv6s"));
        assert!(get("placement/").unwrap().contains("region"));
        let identity = document(&node(), "/latest/dynamic/instance-identity/document").unwrap();
        assert!(identity.contains("\"region\":\"us-east-1\""));
    }

    #[test]
    fn ipv6_is_told_where_it_is() {
        let mut node = NodeView { ipv6: true, ..node() };
        node.enis[0].ipv6_addresses = vec!["2001:db8:aa00:1::5".to_owned()];
        node.enis[0].ipv6_prefixes = ["2001:db8:aa00:1:7::/80", "2001:db8:aa00:1:8::/80"].map(str::to_owned).to_vec();
        let get = |path: &str| document(&node, &format!("/latest/meta-data/{path}"));
        let of = |eni: u8, field: &str| get(&format!("network/interfaces/macs/02:00:00:00:00:0{eni}/{field}"));
        assert_eq!(get("ipv6").as_deref(), Some("2001:db8:aa00:1::5"));
        assert_eq!(of(0, "ipv6s").as_deref(), Some("2001:db8:aa00:1::5"));
        assert_eq!(of(0, "ipv6-prefix").as_deref(), Some("2001:db8:aa00:1:7::/80\n2001:db8:aa00:1:8::/80"));
        assert_eq!((of(1, "ipv6s"), of(1, "ipv6-prefix")), (None, None));
        assert_eq!(of(1, "subnet-ipv6-cidr-blocks").as_deref(), Some("2001:db8:aa00:1::/64"));
        assert_eq!(of(1, "vpc-ipv6-cidr-blocks").as_deref(), Some("2001:db8:aa00::/56"));
    }

    #[test]
    fn an_eni_of_another_card_is_not_the_primary_and_may_have_no_address() {
        let mut node = node();
        node.enis[1] = EniView { card: 1, device_index: 0, addresses: vec![], ..node.enis[1].clone() };
        node.enis.reverse();
        let get = |path: &str| document(&node, &format!("/latest/meta-data/{path}"));
        let of = |field: &str| get(&format!("network/interfaces/macs/02:00:00:00:00:01/{field}"));
        assert_eq!(get("mac").as_deref(), Some("02:00:00:00:00:00"));
        assert_eq!((of("network-card"), of("device-number")), (Some("1".to_owned()), Some("0".to_owned())));
        assert_eq!((of("local-ipv4s"), of("public-ipv4s")), (None, None));
        assert_eq!((of("interface-id"), of("subnet-id")), (Some("eni-1".to_owned()), Some("subnet-1".to_owned())));
    }

    #[test]
    fn a_token_is_needed_and_belongs_to_its_node() {
        let metadata = Metadata::new("test");
        let request = |method: &str, path: &str, headers: &[(&str, &str)]| HttpRequest {
            method: method.to_owned(),
            path: path.to_owned(),
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            ..HttpRequest::default()
        };
        let node = node();
        let ask = |request: &HttpRequest| metadata.answer(request, Some(&node));
        let path = "/latest/meta-data/mac";
        assert_eq!(ask(&request("GET", path, &[])).status, 401);
        assert_eq!(ask(&request("PUT", "/latest/api/token", &[])).status, 400);
        let ttl = "x-aws-ec2-metadata-token-ttl-seconds";
        for bad in ["0", "21601", "x"] {
            assert_eq!(ask(&request("PUT", "/latest/api/token", &[(ttl, bad)])).status, 400);
        }
        assert_eq!(ask(&request("PUT", "/latest/api/token", &[(ttl, "60"), ("x-forwarded-for", "1")])).status, 403);
        let token = ask(&request("PUT", "/latest/api/token", &[(ttl, "60")])).body;
        let with_token = request("GET", path, &[("x-aws-ec2-metadata-token", &token)]);
        assert_eq!(ask(&with_token).status, 200);
        let other = NodeView { instance_id: "i-2".to_owned(), ..node.clone() };
        assert_eq!(metadata.answer(&with_token, Some(&other)).status, 401);
    }
}
