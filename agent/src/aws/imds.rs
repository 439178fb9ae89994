//! Instance metadata (IMDSv2), through the SDK's own client: tokens and
//! AWS_EC2_METADATA_SERVICE_ENDPOINT are its business.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail};
use aws_config::imds::client::{Client, error::ImdsError};
use enid_datapath::Mac;
use enid_ipamd::{AddresslessEni, EniFacts, EniId, Place};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tokio::time::{Instant, sleep};
use tracing::warn;

/// What does not change while the instance exists.
#[derive(Clone, Debug)]
pub struct Instance {
    /// EC2's id.
    pub id: String,
    /// Such as m5.large.
    pub kind: String,
    /// The account that it is of.
    pub account: String,
    /// Such as us-east-1.
    pub region: String,
    /// Subnet of the primary ENI, where new ENIs go.
    pub subnet_id: String,
    /// The VPC.
    pub vpc_id: String,
    /// Security groups of the primary ENI.
    pub groups: Vec<String>,
    /// The VPC's IPv4 CIDRs.
    pub vpc_cidrs: Vec<Ipv4Net>,
    /// Whether the subnet of the primary ENI has IPv6.
    pub subnet_has_v6: bool,
    /// The primary ENI's own IPv6 address, if it has one.
    pub own_v6: Option<Ipv6Addr>,
}

impl Instance {
    /// What tells it from all others.
    pub fn identity(&self) -> String {
        format!("{} (account {}, region {})", self.id, self.account, self.region)
    }
}

/// The metadata service of this instance.
#[derive(Clone, Debug)]
pub struct Imds {
    client: Arc<Mutex<Client>>,
    /// What does not change while an ENI exists, of those that were listed last, by MAC: it is read once.
    fixed: Arc<Mutex<BTreeMap<String, Texts>>>,
}

impl Imds {
    /// Nothing is asked yet.
    pub fn new() -> Self {
        Imds { client: Arc::new(Mutex::new(client())), fixed: Arc::default() }
    }

    /// Facts about the instance, as soon as metadata can be read; for so long it is tried.
    ///
    /// # Errors
    ///
    /// The last failure, if metadata could not be read within `limit`.
    pub async fn wait_for_instance(&self, limit: Duration) -> anyhow::Result<Instance> {
        let started = Instant::now();
        let mut pause = Duration::from_millis(100);
        loop {
            match self.instance().await {
                Ok(instance) => return Ok(instance),
                Err(failure) if started.elapsed() + pause >= limit => {
                    return Err(failure.context(format!(
                        "the instance metadata service did not answer within {} s (ENID_START_WAIT); enid needs \
                         IMDSv2, at AWS_EC2_METADATA_SERVICE_ENDPOINT or 169.254.169.254",
                        limit.as_secs()
                    )));
                }
                Err(failure) => warn!("instance metadata: {failure:#}"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// Facts about the instance.
    async fn instance(&self) -> anyhow::Result<Instance> {
        let mac = self.get("mac").await?;
        let primary = format!("network/interfaces/macs/{mac}");
        let document = self.raw("/latest/dynamic/instance-identity/document").await?;
        let document: serde_json::Value =
            serde_json::from_str(&document).context("the identity document is not JSON")?;
        let region = document["region"].as_str().context("the identity document names no region")?;
        Ok(Instance {
            id: self.get("instance-id").await?,
            kind: self.get("instance-type").await?,
            // Absent in some emulators of the service.
            account: document["accountId"].as_str().unwrap_or_default().to_owned(),
            region: region.to_owned(),
            subnet_id: self.get(&format!("{primary}/subnet-id")).await?,
            vpc_id: self.get(&format!("{primary}/vpc-id")).await?,
            groups: lines(&self.get(&format!("{primary}/security-group-ids")).await?),
            vpc_cidrs: self.vpc_cidrs().await?,
            subnet_has_v6: self.find(&format!("{primary}/subnet-ipv6-cidr-blocks")).await?.is_some(),
            own_v6: match self.find(&format!("{primary}/ipv6s")).await? {
                Some(text) => parse_lines("ipv6s", &text)?.into_iter().next(),
                None => None,
            },
        })
    }

    /// The VPC's CIDRs, which come and go while nodes run (Amazon VPC User Guide, VPC CIDR blocks).
    pub async fn vpc_cidrs(&self) -> anyhow::Result<Vec<Ipv4Net>> {
        let path = format!("network/interfaces/macs/{}/vpc-ipv4-cidr-blocks", self.get("mac").await?);
        let mut cidrs: Vec<Ipv4Net> = self.parsed_lines(&path).await?;
        if cidrs.is_empty() {
            bail!("it shows no CIDR of the VPC");
        }
        cidrs.sort();
        Ok(cidrs)
    }

    /// All ENIs with their addresses, and those without any. An ENI of which only a part shows is left out until all of
    /// it does.
    pub async fn enis(&self) -> anyhow::Result<(Vec<EniFacts>, Vec<AddresslessEni>)> {
        let (mut enis, mut addressless) = (Vec::new(), Vec::new());
        let macs: Vec<String> = lines(&self.get("network/interfaces/macs/").await?)
            .iter()
            .map(|mac| mac.trim_end_matches('/').to_owned())
            .collect();
        self.fixed.lock().unwrap_or_else(PoisonError::into_inner).retain(|mac, _| macs.contains(mac));
        for mac in macs {
            match self.eni(&mac).await? {
                Shown::Whole(eni) => enis.push(*eni),
                Shown::Addressless(eni) => addressless.push(eni),
                Shown::InPart => {}
            }
        }
        if enis.is_empty() {
            bail!("it lists no ENI with an IPv4 address");
        }
        Ok((enis, addressless))
    }

    async fn eni(&self, mac: &str) -> anyhow::Result<Shown> {
        let known = self.fixed.lock().unwrap_or_else(PoisonError::into_inner).get(mac).cloned();
        let mut texts = known.unwrap_or_default();
        let unknown: Vec<&'static str> = KEYS.into_iter().filter(|key| !texts.contains_key(key)).collect();
        for key in unknown {
            if let Some(text) = self.find(&format!("network/interfaces/macs/{mac}/{key}")).await? {
                texts.insert(key, text);
            }
        }
        let shown = facts(mac, &texts)?;
        if matches!(shown, Shown::Whole(_)) {
            texts.retain(|key, _| FIXED.contains(key));
            self.fixed.lock().unwrap_or_else(PoisonError::into_inner).insert(mac.to_owned(), texts);
        }
        Ok(shown)
    }

    async fn get(&self, path: &str) -> anyhow::Result<String> {
        self.find(path).await?.with_context(|| format!("it has no {path}"))
    }

    /// `None` where the service answers 404.
    async fn find(&self, path: &str) -> anyhow::Result<Option<String>> {
        match self.ask(&format!("/latest/meta-data/{path}")).await {
            Ok(value) => Ok(Some(value)),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(anyhow::Error::new(error).context(format!("cannot read {path}"))),
        }
    }

    async fn raw(&self, path: &str) -> anyhow::Result<String> {
        self.ask(path).await.with_context(|| format!("cannot read {path}"))
    }

    /// Asks once, and once more with a new token if the service does not know ours: it may be another service by now
    /// (a resumed instance, a replaced host), and the SDK's client keeps its token for hours whatever is answered.
    async fn ask(&self, path: &str) -> Result<String, ImdsError> {
        let held = || self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let known = held().clone();
        let answer = match known.get(path).await {
            Err(error) if status(&error) == Some(401) => {
                let fresh = client();
                *held() = fresh.clone();
                fresh.get(path).await
            }
            answer => answer,
        };
        answer.map(String::from)
    }

    async fn parsed_lines<T: std::str::FromStr>(&self, path: &str) -> anyhow::Result<Vec<T>> {
        parse_lines(path, &self.get(path).await?)
    }
}

/// What metadata says of one ENI, by key; a key that answers 404 is not there.
pub type Texts = BTreeMap<&'static str, String>;

/// The keys that are read.
pub const KEYS: [&str; 9] = [
    "interface-id",
    "device-number",
    "network-card",
    "local-ipv4s",
    "ipv4-prefix",
    "ipv6s",
    "ipv6-prefix",
    "subnet-id",
    "subnet-ipv4-cidr-block",
];

/// Those that never change for an ENI. Its place is not among them: it may be attached elsewhere.
const FIXED: [&str; 3] = ["interface-id", "subnet-id", "subnet-ipv4-cidr-block"];

/// How much metadata shows of an ENI.
#[derive(Debug)]
pub enum Shown {
    /// All that is needed.
    Whole(Box<EniFacts>),
    /// It has no IPv4 address: it is EFA-only, or that is still to come.
    Addressless(AddresslessEni),
    /// Too little.
    InPart,
}

/// The ENI with this MAC. Prefixes and IPv6 it may have none, and types with one network card may leave the card out.
pub fn facts(mac: &str, texts: &Texts) -> anyhow::Result<Shown> {
    let text = |key: &str| texts.get(key).map(String::as_str);
    let (Some(id), Some(device)) = (text("interface-id"), text("device-number")) else { return Ok(Shown::InPart) };
    let id = EniId(id.trim().into());
    let card = text("network-card").map_or(Ok(0), |card| parse("network-card", card))?;
    let place = Place { card, device_index: parse("device-number", device)? };
    let (Some(addresses), Some(subnet_id), Some(subnet)) =
        (text("local-ipv4s"), text("subnet-id"), text("subnet-ipv4-cidr-block"))
    else {
        return Ok(Shown::Addressless(AddresslessEni { id, place }));
    };
    let mut addresses = parse_lines::<Ipv4Addr>("local-ipv4s", addresses)?.into_iter();
    let Some(primary) = addresses.next() else { return Ok(Shown::Addressless(AddresslessEni { id, place })) };
    let own_v6 = parse_lines::<Ipv6Addr>("ipv6s", text("ipv6s").unwrap_or_default())?.into_iter().next();
    let subnet: Ipv4Net = parse("subnet-ipv4-cidr-block", subnet)?;
    let prefixes = parse_lines::<Ipv4Net>("ipv4-prefix", text("ipv4-prefix").unwrap_or_default())?;
    // EC2 User Guide, "Prefix delegation": an IPv4 prefix is a /28.
    if let Some(odd) = prefixes.iter().find(|net| net.prefix_len() != 28) {
        bail!("its ipv4-prefix is {odd}, which is no /28");
    }
    let prefixes = prefixes.into_iter().map(|net| IpNet::V4(net.trunc()));
    let v6_prefixes = parse_lines::<Ipv6Net>("ipv6-prefix", text("ipv6-prefix").unwrap_or_default())?;
    // The same: an IPv6 prefix is a /80.
    if let Some(odd) = v6_prefixes.iter().find(|net| net.prefix_len() != 80) {
        bail!("its ipv6-prefix is {odd}, which is no /80");
    }
    let prefixes = prefixes.chain(v6_prefixes.into_iter().map(|net| IpNet::V6(net.trunc())));
    Ok(Shown::Whole(Box::new(EniFacts {
        id,
        mac: mac.parse::<Mac>().map_err(anyhow::Error::msg)?.0,
        place,
        own_v6,
        primary: Ipv4Net::new(primary, subnet.prefix_len()).context("subnet-ipv4-cidr-block has no valid length")?,
        subnet_id: subnet_id.trim().to_owned(),
        blocks: addresses.map(|address| IpNet::from(IpAddr::V4(address))).chain(prefixes).collect::<BTreeSet<_>>(),
    })))
}

fn client() -> Client {
    let limit = Duration::from_secs(1);
    Client::builder().max_attempts(1).connect_timeout(limit).read_timeout(limit).build()
}

/// The HTTP status of an answer that is an error.
fn status(error: &ImdsError) -> Option<u16> {
    match error {
        ImdsError::ErrorResponse(answer) => Some(answer.response().status().as_u16()),
        _ => None,
    }
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn parse<T: std::str::FromStr>(name: &str, text: &str) -> anyhow::Result<T> {
    text.trim().parse().map_err(|_| anyhow::anyhow!("its {name} is {text:?}, which cannot be read"))
}

fn parse_lines<T: std::str::FromStr>(name: &str, text: &str) -> anyhow::Result<Vec<T>> {
    lines(text).iter().map(|line| parse(name, line)).collect()
}
