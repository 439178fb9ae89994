//! What instance metadata and EC2 say, asked by the command itself: so it is known also when the daemon does not answer, and what
//! the two say can be compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use enid_api::v1::Eni;
use enid_ipamd::{AuditedEni, Call, Cause, Ec2Answer, EniFacts, EniId, Provisioning, Scope};
use ipnet::IpNet;
use tokio::time::{Instant, timeout, timeout_at};

use super::{daemon::OfDaemon, finding::Finding};
use crate::{
    aws::{
        ec2::Ec2,
        imds::{Imds, Reading},
    },
    commands::bundle::secrets,
    settings::Settings,
};

/// Metadata answers within milliseconds, or is not there.
const METADATA: Duration = Duration::from_millis(1_500);
/// An answer of EC2 takes some hundred milliseconds.
const EC2: Duration = Duration::from_millis(2_500);

/// What they say.
#[derive(Debug, Default)]
pub struct OfCloud {
    /// The ENIs, or why metadata cannot be read.
    metadata: Option<Result<Vec<EniFacts>, String>>,
    /// The ENIs, or EC2's cause and sentence; `None` if it was not asked.
    ec2: Option<Result<Vec<AuditedEni>, (Cause, String)>>,
}

/// Asks them.
pub async fn look(settings: &Settings) -> OfCloud {
    let imds = Imds::new();
    let metadata_ends = Instant::now() + METADATA;
    let instance = match imds.wait_for_instance(METADATA).await {
        Ok(instance) => instance,
        Err(failure) => return OfCloud { metadata: Some(Err(format!("{failure:#}"))), ec2: None },
    };
    let metadata = match timeout_at(metadata_ends, imds.enis(Reading::All)).await {
        Ok(read) => read.map(|enis| enis.read).map_err(|failure| format!("{failure:#}")),
        Err(_) => Err(format!("metadata of the ENIs cannot be read within {} ms", METADATA.as_millis())),
    };
    let ec2 = match settings.policy.provisioning {
        Provisioning::ImdsOnly => None,
        _ => {
            let place = place(settings, &instance.region);
            let asked = async { Ec2::new(instance, settings).await.call(&Call::Audit { scope: Scope::Ours }).await };
            let failed = |cause, words: &str| Err((cause, format!("asked by this command, {place}: {words}")));
            Some(match timeout(EC2, asked).await {
                Ok(Ok(Ec2Answer::Audited { attached, .. })) => Ok(attached),
                Ok(Ok(_)) => failed(Cause::Ec2Error, "EC2 answers something else than it was asked"),
                Ok(Err(failure)) => failed(failure.cause, &failure.message),
                Err(_) => failed(Cause::Ec2Unreachable, &format!("EC2 does not answer within {} ms", EC2.as_millis())),
            })
        }
    };
    OfCloud { metadata: Some(metadata), ec2 }
}

/// Where EC2 is asked, as far as the command's own environment says it; a proxy's URL may have a password.
fn place(settings: &Settings, region: &str) -> String {
    let variable = |name: &&str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let given = settings.ec2_endpoint.clone();
    let given = given.or_else(|| ["AWS_ENDPOINT_URL_EC2", "AWS_ENDPOINT_URL"].iter().find_map(variable));
    let endpoint = given.unwrap_or_else(|| format!("EC2's endpoint of {region}"));
    let proxies = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
    let set: Vec<&str> = proxies.into_iter().filter(|name| variable(name).is_some()).collect();
    let set = if set.is_empty() { String::new() } else { format!(" ({} set)", set.join(", ")) };
    format!("at {}{set}", secrets::without(&endpoint))
}

/// What is wrong by what they say, but for [`differences`].
pub fn findings(cloud: &OfCloud, daemon: Option<&OfDaemon>) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(Err(words)) = &cloud.metadata {
        found.push(Finding::new(Cause::MetadataUnreadable.name(), words.clone()));
    }
    if let Some(Err((cause, words))) = &cloud.ec2 {
        found.push(Finding::new(cause.name(), words.clone()));
    }
    if let (Some(Ok(metadata)), Some(Ok(ec2)), Some(daemon)) = (&cloud.metadata, &cloud.ec2, daemon) {
        found.extend(lost(metadata, ec2, daemon));
    }
    found
}

/// ENIs with pods that are not attached any more, as both say: EC2 is asked for those that carry our tag.
fn lost(metadata: &[EniFacts], ec2: &[AuditedEni], daemon: &OfDaemon) -> Vec<Finding> {
    let shown = metadata.iter().map(|eni| &*eni.id.0);
    let attached: BTreeSet<&str> = ec2.iter().map(|eni| &*eni.id.0).chain(shown).collect();
    let lost = daemon.enis.iter().filter(|eni| eni.assigned > 0 && !attached.contains(&*eni.id));
    let words =
        |eni: &Eni| format!("{} is not attached any more, and {} pods have addresses on it", eni.id, eni.assigned);
    lost.map(|eni| Finding::new(Cause::EniLost.name(), words(eni))).collect()
}

/// What only one of the two says: while something is ordered or given back, and for a moment after it, that is as it should be.
pub fn differences(cloud: &OfCloud, settings: &Settings) -> Vec<Finding> {
    let (Some(Ok(metadata)), Some(Ok(ec2))) = (&cloud.metadata, &cloud.ec2) else { return Vec::new() };
    let provisioning = settings.policy.provisioning;
    let shown: BTreeMap<&EniId, BTreeSet<IpNet>> =
        metadata.iter().map(|eni| (&eni.id, eni.blocks.iter().copied().collect())).collect();
    let mut found = Vec::new();
    for eni in ec2.iter().filter(|eni| !eni.no_manage) {
        let said: BTreeSet<IpNet> = eni.blocks.iter().copied().collect();
        let Some(shown) = shown.get(&eni.id) else {
            if !said.is_empty() && provisioning == Provisioning::On {
                let words = format!("EC2 says that {} is attached, and metadata does not show it", eni.id);
                found.push(Finding::new("metadata_differs", words));
            }
            continue;
        };
        let list = |nets: Vec<&IpNet>| nets.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let (more, less) = (list(said.difference(shown).collect()), list(shown.difference(&said).collect()));
        if !more.is_empty() {
            let words = format!("EC2 says that {} has {more}, which metadata does not show", eni.id);
            found.push(Finding::new("metadata_differs", words));
        }
        if !less.is_empty() {
            let words = format!("metadata shows {less} on {}, which EC2 does not have there", eni.id);
            found.push(Finding::new("metadata_differs", words));
        }
    }
    found
}
