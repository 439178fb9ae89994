//! How the value of a setting is read, and what is said of one that makes no sense.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use enid_datapath::{
    marks::Marks,
    policy::{NodePorts, Policy, Ports, Translation},
};
use enid_ipamd::{Placement, Target};
use ipnet::Ipv4Net;
use tonic::transport::Uri;

use super::{
    stack::Stack,
    table::{SETTINGS, Setting},
};

/// A value that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The setting.
    pub setting: String,
    /// One sentence: name, value and what is allowed.
    pub text: String,
}

/// Reads settings one by one, and gathers what is wrong with them.
pub(super) struct Reader<'a> {
    value: &'a dyn Fn(&Setting) -> Option<String>,
    mistakes: Vec<Mistake>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(value: &'a dyn Fn(&Setting) -> Option<String>) -> Self {
        Reader { value, mistakes: Vec::new() }
    }

    /// What is wrong with the settings that were read.
    pub(super) fn into_mistakes(self) -> Vec<Mistake> {
        self.mistakes
    }

    /// The value as written, or the default; `None` if both are empty.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        let setting = SETTINGS.iter().find(|setting| setting.name == name)?;
        let given = (self.value)(setting).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        given.or_else(|| Some(setting.default.to_owned()).filter(|value| !value.is_empty()))
    }

    pub(super) fn mistake(&mut self, name: &str, value: &str, allowed: impl std::fmt::Display) {
        let text = format!("{name} is {value:?}; allowed: {allowed}");
        self.mistakes.push(Mistake { setting: name.to_owned(), text });
    }

    pub(super) fn number(&mut self, name: &str, least: u32, most: u32) -> Option<u32> {
        let value = self.text(name)?;
        let number = value.parse().ok().filter(|number| (least..=most).contains(number));
        if number.is_none() {
            self.mistake(name, &value, format_args!("whole numbers from {least} to {most}"));
        }
        number
    }

    /// The same from 0, where the peer takes -1 for a value that is not set.
    pub(super) fn number_or_unset(&mut self, name: &str, most: u32) -> Option<u32> {
        if self.text(name).as_deref() == Some("-1") { None } else { self.number(name, 0, most) }
    }

    /// A level of `tracing`; the peer has one more.
    pub(super) fn log_level(&mut self, name: &str) -> String {
        let level = self.one_of(name, &["fatal", "error", "warn", "info", "debug", "trace"]);
        if level == "fatal" { "error".to_owned() } else { level }
    }

    /// `auto`, unless one of the peer's targets is set; then the peer's defaults hold for the others.
    pub(super) fn target(&mut self) -> Target {
        let enis = self.number_or_unset("WARM_ENI_TARGET", 1000);
        let addresses = self.number_or_unset("WARM_IP_TARGET", 100_000);
        let minimum = self.number_or_unset("MINIMUM_IP_TARGET", 100_000);
        let prefixes = self.number_or_unset("WARM_PREFIX_TARGET", 1000);
        if [enis, addresses, minimum, prefixes].iter().all(Option::is_none) {
            return Target::Auto;
        }
        Target::Warm {
            enis: enis.unwrap_or(1),
            addresses: addresses.unwrap_or(0),
            minimum: minimum.unwrap_or(0),
            prefixes: prefixes.unwrap_or(1),
        }
    }

    pub(super) fn switch(&mut self, name: &str) -> bool {
        let value = self.text(name).unwrap_or_default();
        match value.to_ascii_lowercase().as_str() {
            "1" | "t" | "true" => true,
            "0" | "f" | "false" => false,
            _ => {
                self.mistake(name, &value, "true, false");
                false
            }
        }
    }

    pub(super) fn one_of(&mut self, name: &str, allowed: &[&str]) -> String {
        let value = self.text(name).unwrap_or_default().to_ascii_lowercase();
        if !allowed.contains(&value.as_str()) {
            self.mistake(name, &value, allowed.join(", "));
        }
        value
    }

    pub(super) fn parsed<T: FromStr>(&mut self, name: &str, allowed: &str) -> Option<T> {
        let value = self.text(name)?;
        let parsed = value.parse().ok();
        if parsed.is_none() {
            self.mistake(name, &value, allowed);
        }
        parsed
    }

    /// An address that only this host reaches.
    pub(super) fn loopback(&mut self, name: &str) -> SocketAddr {
        const ALLOWED: &str = "a loopback ADDRESS:PORT, such as 127.0.0.1:61680";
        let address: Option<SocketAddr> = self.parsed(name, ALLOWED);
        match address {
            Some(address) if address.ip().is_loopback() => address,
            Some(address) => {
                self.mistake(name, &address.to_string(), ALLOWED);
                address
            }
            None => (Ipv4Addr::LOCALHOST, 0).into(), // which has been said
        }
    }

    /// The same; `None` if it is not set.
    pub(super) fn loopback_if_set(&mut self, name: &str) -> Option<SocketAddr> {
        self.text(name).map(|_| self.loopback(name))
    }

    /// Where new ENIs are created.
    pub(super) fn placement(&mut self, stack: Stack) -> Placement {
        let (custom, discovery) =
            (self.switch("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG"), self.switch("ENABLE_SUBNET_DISCOVERY"));
        if custom && matches!(stack, Stack::V6 { .. }) {
            self.mistake("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true", "false where pods have no address but of IPv6");
        }
        match (custom, discovery) {
            (true, _) => Placement::EniConfig,
            (_, true) => Placement::Tagged { cluster: self.text("CLUSTER_NAME") },
            _ => Placement::Primary,
        }
    }

    pub(super) fn policy(&mut self, stack: Stack) -> Policy {
        let ports = match self.one_of("AWS_VPC_K8S_CNI_RANDOMIZESNAT", &["prng", "hashrandom", "none"]).as_str() {
            "hashrandom" => Ports::Hashed,
            "none" => Ports::Kept,
            _ => Ports::FullyRandom,
        };
        let external = self.switch("AWS_VPC_K8S_CNI_EXTERNALSNAT");
        Policy {
            marks: self.marks(),
            node_ports: if self.switch("AWS_VPC_CNI_NODE_PORT_SUPPORT") {
                NodePorts::SameWayBack
            } else {
                NodePorts::Off
            },
            translation: if external { Translation::External } else { Translation::Here(ports) },
            by_main: self.destinations("AWS_EXTERNAL_SERVICE_CIDRS"),
            of_vpc: stack.of_vpc(),
            of_node: stack.of_node(),
        }
    }

    /// Which families pods have, and what they leave by in the other one.
    pub(super) fn stack(&mut self) -> Stack {
        let mistakes = self.mistakes.len();
        let (v4, v6) = (self.switch("ENABLE_IPv4"), self.switch("ENABLE_IPv6"));
        let garbled = self.mistakes.len() > mistakes;
        let (v4_egress, v6_egress) = (self.switch("ENABLE_V4_EGRESS"), self.switch("ENABLE_V6_EGRESS"));
        match (v4, v6) {
            (true, true) => Stack::Dual,
            (false, true) => Stack::V6 { v4_egress },
            (true, false) => Stack::V4 { v6_egress },
            (false, false) if garbled => Stack::V4 { v6_egress }, // which has been said
            (false, false) => {
                self.mistake("ENABLE_IPv4", "false", "true, unless ENABLE_IPv6 is true");
                Stack::V4 { v6_egress }
            }
        }
    }

    fn marks(&mut self) -> Marks {
        let (connmark, mask) = (self.bits("AWS_VPC_K8S_CNI_CONNMARK"), self.bits("ENID_ENI_MARK_MASK"));
        let (Some(connmark), Some(mask)) = (connmark, mask) else { return Marks::default() };
        if let Err(allowed) = Marks::check_eni_mask(mask) {
            self.mistake("ENID_ENI_MARK_MASK", &format!("{mask:#x}"), allowed);
            return Marks::default();
        }
        Marks::new(connmark, mask).unwrap_or_else(|allowed| {
            let allowed = format!("{allowed}; the ENIs' mask, ENID_ENI_MARK_MASK, is {mask:#x}");
            self.mistake("AWS_VPC_K8S_CNI_CONNMARK", &format!("{connmark:#x}"), allowed);
            Marks::default()
        })
    }

    /// As the peer reads it: decimal, or hexadecimal with 0x.
    fn bits(&mut self, name: &str) -> Option<u32> {
        let value = self.text(name)?;
        let bits = match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
            Some(hex) => u32::from_str_radix(hex, 16),
            None => value.parse(),
        };
        if bits.is_err() {
            self.mistake(name, &value, "a number such as 0x80, of 32 bits at most");
        }
        bits.ok()
    }

    pub(super) fn cidrs(&mut self, name: &str) -> Vec<Ipv4Net> {
        let value = self.text(name).unwrap_or_default();
        let mut nets = Vec::new();
        for item in value.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            match item.parse::<Ipv4Net>() {
                Ok(net) => nets.push(net.trunc()),
                Err(_) => self.mistake(name, item, "IPv4 CIDRs such as 172.31.0.0/16, separated by commas"),
            }
        }
        nets
    }

    /// CIDRs that a rule asks of main: everything would be no rule of its own.
    fn destinations(&mut self, name: &str) -> Vec<Ipv4Net> {
        let nets = self.cidrs(name);
        if nets.iter().any(|net| net.prefix_len() == 0) {
            self.mistake(name, "0.0.0.0/0", "IPv4 CIDRs of a part of all addresses, such as 10.100.0.0/16");
        }
        nets
    }

    pub(super) fn tags(&mut self, name: &str) -> BTreeMap<String, String> {
        let value = self.text(name).unwrap_or_default();
        match serde_json::from_str::<BTreeMap<String, String>>(&value) {
            // The peer drops keys of its own namespace, and so do we: they say who owns an ENI.
            Ok(tags) => tags.into_iter().filter(|(key, _)| !key.contains("k8s.amazonaws.com")).collect(),
            Err(_) => {
                self.mistake(name, &value, "a JSON object of strings such as {\"team\":\"net\"}");
                BTreeMap::new()
            }
        }
    }

    pub(super) fn prefix(&mut self, name: &str) -> String {
        let value = self.text(name).unwrap_or_default();
        let fits = value.len() <= 4 && value.chars().all(|c| c.is_ascii_alphanumeric());
        if !fits || ["eth", "lo", "vlan"].contains(&value.as_str()) {
            self.mistake(name, &value, "four letters or digits at most, but not eth, lo or vlan");
        }
        value
    }

    pub(super) fn url(&mut self, name: &str) -> Option<String> {
        let value = self.text(name)?;
        if !is_url(&value) {
            self.mistake(name, &value, URLS);
        }
        Some(value)
    }

    pub(super) fn https_url(&mut self, name: &str) -> Option<String> {
        let value = self.text(name)?;
        if !is_url(&value) || !value.starts_with("https://") {
            self.mistake(name, &value, "a URL such as https://10.0.0.5:6443");
        }
        Some(value)
    }

    /// The key of a taint, a qualified name of Kubernetes.
    pub(super) fn taint(&mut self, name: &str) -> Option<String> {
        let value = self.text(name)?;
        let (prefix, rest) = value.rsplit_once('/').unwrap_or(("", &value));
        let fits = |text: &str, most| {
            text.len() <= most && text.chars().all(|c| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c))
        };
        if rest.is_empty() || !fits(rest, 63) || !fits(prefix, 253) {
            self.mistake(name, &value, "the key of a taint such as node.example.com/starting");
        }
        Some(value)
    }

    pub(super) fn folder(&mut self, name: &str) -> PathBuf {
        self.file(name).unwrap_or_default()
    }

    pub(super) fn file(&mut self, name: &str) -> Option<PathBuf> {
        let value = self.text(name)?;
        if !value.starts_with('/') {
            self.mistake(name, &value, "an absolute path");
        }
        Some(PathBuf::from(value))
    }
}

pub(super) const URLS: &str = "a URL such as http://10.0.0.5:4566 or https://ec2.eu-west-1.amazonaws.com";

pub(super) fn is_url(value: &str) -> bool {
    let parsed: Option<Uri> = value.parse().ok();
    parsed.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
    })
}
