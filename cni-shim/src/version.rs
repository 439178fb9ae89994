//! The versions of CNI this plugin speaks.

use serde::Deserialize;
use serde_json::json;

use crate::error::Error;

/// Oldest first.
pub const SUPPORTED: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The newest of them.
pub const NEWEST: &str = "1.1.0";

#[derive(Deserialize)]
struct Asked {
    #[serde(rename = "cniVersion")]
    cni_version: Option<String>,
}

/// The version that a configuration names, for answers to requests that are otherwise unreadable.
pub fn asked(input: &[u8]) -> String {
    let named = serde_json::from_slice::<Asked>(input).ok().and_then(|asked| asked.cni_version);
    named.filter(|version| SUPPORTED.contains(&version.as_str())).unwrap_or_else(|| NEWEST.to_owned())
}

/// VERSION: needs nothing but itself. It echoes the version on stdin, or says the newest.
pub fn answer(input: &[u8]) -> Result<String, Error> {
    Ok(json!({ "cniVersion": asked(input), "supportedVersions": SUPPORTED }).to_string())
}

/// Refuses versions that are not ours. A missing one means 0.1.0, as the specification has it.
pub fn supported(version: Option<&str>) -> Result<&'static str, Error> {
    let version = version.unwrap_or("0.1.0");
    let numbers = version.split('.').collect::<Vec<_>>();
    if numbers.len() != 3 || numbers.iter().any(|number| number.parse::<u32>().is_err()) {
        return Err(Error::decode(format!("\"cniVersion\" is {version:?}, which is no version; 1.1.0 is one")));
    }
    SUPPORTED.into_iter().find(|known| *known == version).ok_or_else(|| {
        let supported = SUPPORTED.join(", ");
        Error::version(
            format!("cniVersion {version:?} is not supported; supported are {supported}"),
            format!("asked={version} supported={}", SUPPORTED.join(",")),
        )
    })
}

/// Refuses a verb that came with a later version.
pub fn needs(version: &str, verb: &str, since: &str) -> Result<(), Error> {
    let place = |wanted: &str| SUPPORTED.iter().position(|known| *known == wanted);
    if place(version) < place(since) {
        return Err(Error::version(
            format!("{verb} came with cniVersion {since}; the configuration says {version}"),
            format!("asked={version} needed={since}"),
        ));
    }
    Ok(())
}
