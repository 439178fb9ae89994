//! Instance metadata (IMDSv2), through the SDK's own client: tokens and
//! AWS_EC2_METADATA_SERVICE_ENDPOINT are its business.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail};
use aws_config::imds::client::{Client, error::ImdsError};
use enid_datapath::Mac;
use enid_ipamd::{AddresslessEni, EniFacts, EniId, Kind, Place, SubnetId};
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
    /// Such as us-east-1a: where its ENIs have to be.
    pub zone: String,
    /// Subnet of the primary ENI, where new ENIs go unless the core names another.
    pub subnet_id: String,
    /// The VPC.
    pub vpc_id: String,
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
    known: Arc<Mutex<Known>>,
}

/// What is read of the primary ENI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OfPrimary {
    /// The VPC's CIDRs.
    pub cidrs: Vec<Ipv4Net>,
    /// Ids of its security groups.
    pub groups: BTreeSet<String>,
}

/// What one reading shows.
#[derive(Debug, Default)]
pub struct Enis {
    /// Those with addresses of which something was read now.
    pub read: Vec<EniFacts>,
    /// All with addresses.
    pub listed: BTreeSet<EniId>,
    /// All without.
    pub addressless: Vec<AddresslessEni>,
}

/// What was read last.
#[derive(Debug, Default)]
struct Known {
    /// MAC of the primary ENI.
    primary: Option<String>,
    /// Of the ENIs that were listed last, by MAC.
    enis: BTreeMap<String, Texts>,
    /// The MAC whose turn it was last ([`Reading::InTurn`]).
    turn: String,
}

impl Known {
    /// The MACs, if all of these ENIs are among them.
    fn with_all(&self, wanted: &Wanted) -> Option<Vec<String>> {
        let ids: BTreeSet<&str> =
            self.enis.values().filter_map(|texts| Some(texts.get("interface-id")?.trim())).collect();
        wanted.keys().all(|eni| ids.contains(&*eni.0)).then(|| self.enis.keys().cloned().collect())
    }

    /// The MAC whose turn it is.
    fn next_turn(&mut self) -> Option<String> {
        let after = self.enis.keys().find(|mac| **mac > self.turn).or(self.enis.keys().next());
        self.turn.clone_from(after?);
        Some(self.turn.clone())
    }
}

impl Imds {
    /// Nothing is asked yet.
    pub fn new() -> Self {
        Imds { client: Arc::new(Mutex::new(client())), known: Arc::default() }
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
        let primary = format!("{MACS}{mac}");
        let document = self.raw("/latest/dynamic/instance-identity/document").await?;
        let document: serde_json::Value =
            serde_json::from_str(&document).context("the identity document is not JSON")?;
        let region = document["region"].as_str().context("the identity document names no region")?;
        let zone = document["availabilityZone"].as_str().context("the identity document names no zone")?;
        Ok(Instance {
            id: self.get("instance-id").await?,
            kind: self.get("instance-type").await?,
            // Absent in some emulators of the service.
            account: document["accountId"].as_str().unwrap_or_default().to_owned(),
            region: region.to_owned(),
            zone: zone.to_owned(),
            subnet_id: self.get(&format!("{primary}/subnet-id")).await?,
            vpc_id: self.get(&format!("{primary}/vpc-id")).await?,
            vpc_cidrs: self.vpc_cidrs(&primary).await?,
            subnet_has_v6: self.find(&format!("{primary}/subnet-ipv6-cidr-blocks")).await?.is_some(),
            own_v6: match self.find(&format!("{primary}/ipv6s")).await? {
                Some(text) => parse_lines("ipv6s", &text)?.into_iter().next(),
                None => None,
            },
        })
    }

    /// The VPC's CIDRs, which come and go while nodes run (Amazon VPC User Guide, VPC CIDR blocks), as the primary ENI
    /// has them below this path.
    async fn vpc_cidrs(&self, primary: &str) -> anyhow::Result<Vec<Ipv4Net>> {
        let path = format!("{primary}/vpc-ipv4-cidr-blocks");
        let mut cidrs: Vec<Ipv4Net> = parse_lines(&path, &self.get(&path).await?)?;
        if cidrs.is_empty() {
            bail!("it shows no CIDR of the VPC");
        }
        cidrs.sort();
        Ok(cidrs)
    }

    /// What others change most: the VPC's CIDRs and the primary ENI's security groups.
    pub async fn of_primary(&self) -> anyhow::Result<OfPrimary> {
        let known = self.held().primary.clone();
        let mac = match known {
            Some(mac) => mac,
            None => self.get("mac").await?,
        };
        let primary = format!("{MACS}{mac}");
        let cidrs = self.vpc_cidrs(&primary).await?;
        let groups = self.find(&format!("{primary}/{GROUPS}")).await?;
        let groups = lines(&groups.unwrap_or_default()).into_iter().collect();
        self.held().primary = Some(mac);
        Ok(OfPrimary { cidrs, groups })
    }

    /// The ENIs, as far as `reading` says. One of which only a part shows is left out until all of it does.
    pub async fn enis(&self, reading: Reading<'_>) -> anyhow::Result<Enis> {
        let mut enis = Enis::default();
        let known = match reading {
            Reading::Of(wanted) if !wanted.is_empty() => self.held().with_all(wanted),
            _ => None,
        };
        let macs: Vec<String> = match known {
            Some(macs) => macs,
            None => lines(&self.get(MACS).await?).iter().map(|mac| mac.trim_end_matches('/').to_owned()).collect(),
        };
        let turn = {
            let mut known = self.held();
            known.enis.retain(|mac, _| macs.contains(mac));
            known.primary = known.primary.take().filter(|mac| macs.contains(mac));
            if matches!(reading, Reading::InTurn(_)) { known.next_turn() } else { None }
        };
        // Remembered once all of it was read: what a reading that fails had seen nobody is told.
        let mut texts_by_mac = BTreeMap::new();
        for mac in macs {
            let known = self.held().enis.get(&mac).cloned().unwrap_or_default();
            let mut keys = to_read(&mac, &known, reading)?;
            if keys.is_empty() && turn.as_ref() == Some(&mac) {
                keys.extend(of_turn(&mac, &known)?);
            }
            let is_read = !keys.is_empty();
            let texts = self.eni(&mac, known, keys).await?;
            match facts(&mac, &texts)? {
                Shown::Whole(eni) => {
                    enis.listed.insert(eni.id.clone());
                    enis.read.extend(is_read.then_some(*eni));
                }
                Shown::Addressless(eni) => enis.addressless.push(eni),
                Shown::InPart => {}
            }
            texts_by_mac.insert(mac, texts);
        }
        if enis.listed.is_empty() {
            bail!("it lists no ENI with an IPv4 address");
        }
        self.held().enis = texts_by_mac;
        Ok(enis)
    }

    /// What metadata says of an ENI, of which this was read before and these keys are read now.
    async fn eni(&self, mac: &str, mut texts: Texts, mut keys: Vec<&'static str>) -> anyhow::Result<Texts> {
        // Many have no prefixes and no IPv6: their keys are listed, and those that are not there not asked for.
        let is_whole = keys.len() > BLOCKS.len() + 1;
        if let Some(present) = if is_whole { self.find(&format!("{MACS}{mac}/")).await? } else { None } {
            let present = lines(&present);
            let is_present = |key: &&str| present.iter().any(|line| line.trim_end_matches('/') == *key);
            keys.iter().filter(|key| !is_present(key)).for_each(|key| drop(texts.remove(key)));
            keys.retain(is_present);
        }
        for key in keys {
            match self.find(&format!("{MACS}{mac}/{key}")).await? {
                Some(text) => drop(texts.insert(key, text)),
                None => drop(texts.remove(key)),
            }
        }
        Ok(texts)
    }

    fn held(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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
}

/// What metadata says of one ENI, by key; a key that answers 404 is not there.
pub type Texts = BTreeMap<&'static str, String>;

/// The keys that are read.
pub const KEYS: [&str; 10] = [
    "interface-id",
    "device-number",
    CARD,
    "local-ipv4s",
    "ipv4-prefix",
    "ipv6s",
    "ipv6-prefix",
    GROUPS,
    "subnet-id",
    "subnet-ipv4-cidr-block",
];
/// The network card.
const CARD: &str = "network-card";
/// Security groups.
const GROUPS: &str = "security-group-ids";
/// Those that never change for an ENI. Its place is not among them: it may be attached elsewhere.
const FIXED: [&str; 3] = ["interface-id", "subnet-id", "subnet-ipv4-cidr-block"];
/// Those that EC2 changes when blocks are assigned or unassigned.
const BLOCKS: [&str; 3] = ["local-ipv4s", "ipv4-prefix", "ipv6-prefix"];
/// Below it metadata has the ENIs, by MAC.
const MACS: &str = "network/interfaces/macs/";

/// What is read of ENIs that are known already. A new one, and one of which only a part showed, is always read.
#[derive(Clone, Copy, Debug)]
pub enum Reading<'a> {
    /// Everything that may change.
    All,
    /// Of these the blocks of the kinds that are named, or all blocks and the groups where none is; nothing of the others.
    /// The list of ENIs only where one of them is not in it yet.
    Of(&'a Wanted),
    /// The same, with the list of ENIs, and of one of the others, another one each time, whether it still has its blocks:
    /// somebody else may have taken one away.
    InTurn(&'a Wanted),
}

/// What is to be read of ENIs.
pub type Wanted = BTreeMap<EniId, BTreeSet<Kind>>;

/// The keys to read of an ENI of which this is known.
fn to_read(mac: &str, known: &Texts, reading: Reading<'_>) -> anyhow::Result<Vec<&'static str>> {
    // On types with one network card every ENI is on the first for ever.
    let of_first_card = |key: &str| key == CARD && known.get(key).is_some_and(|card| card.trim() == "0");
    let is_fixed = |key: &&str| FIXED.contains(key) && known.contains_key(*key) || of_first_card(key);
    let changing = || KEYS.into_iter().filter(|key| !is_fixed(key)).collect();
    let enis = match reading {
        Reading::All => return Ok(changing()),
        Reading::Of(enis) | Reading::InTurn(enis) => enis,
    };
    let list_of = |kind: &Kind| match kind {
        Kind::Single => BLOCKS[0],
        Kind::Prefix => BLOCKS[1],
        Kind::V6Prefix => BLOCKS[2],
    };
    Ok(match facts(mac, known)? {
        Shown::InPart => changing(),
        Shown::Whole(eni) => match enis.get(&eni.id) {
            Some(kinds) if kinds.is_empty() => BLOCKS.into_iter().chain([GROUPS]).collect(),
            kinds => kinds.into_iter().flatten().map(list_of).collect(),
        },
        Shown::Addressless(eni) if enis.contains_key(&eni.id) => changing(),
        Shown::Addressless(_) => Vec::new(),
    })
}

/// What is read of an ENI whose turn it is.
fn of_turn(mac: &str, known: &Texts) -> anyhow::Result<Vec<&'static str>> {
    Ok(match facts(mac, known)? {
        Shown::Whole(_) => vec![main_list(known)],
        _ => BLOCKS.to_vec(),
    })
}

/// The list in which an ENI has most of its blocks.
fn main_list(known: &Texts) -> &'static str {
    let number = |key: &str| known.get(key).map_or(0, |text| lines(text).len());
    // One of the addresses is its own.
    let numbers = BLOCKS.map(|key| (number(key).saturating_sub(usize::from(key == BLOCKS[0])), key));
    // Of lists of one length, the first.
    numbers.into_iter().rev().max_by_key(|(number, _)| *number).map_or(BLOCKS[0], |(_, key)| key)
}

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
        subnet_id: SubnetId(subnet_id.trim().into()),
        blocks: addresses.map(|address| IpNet::from(IpAddr::V4(address))).chain(prefixes).collect::<BTreeSet<_>>(),
        groups: lines(text(GROUPS).unwrap_or_default()).into_iter().collect(),
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
