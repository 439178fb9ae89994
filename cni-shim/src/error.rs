//! What a failed call prints: one JSON document on stdout (CNI spec 1.1.0, section 2, "Error").

use std::fmt;

use serde_json::json;

/// A refusal with the specification's code.
#[derive(Debug)]
pub struct Error {
    code: u32,
    /// One sentence.
    pub msg: String,
    /// `key=value` pairs.
    pub details: String,
    /// The daemon knows it.
    pub is_told: bool,
}

impl Error {
    fn new(code: u32, msg: impl Into<String>) -> Self {
        Error { code, msg: msg.into(), details: String::new(), is_told: false }
    }

    /// Code 1: the version of the configuration is not one of ours.
    pub fn version(msg: impl Into<String>, details: impl Into<String>) -> Self {
        Error { code: 1, msg: msg.into(), details: details.into(), is_told: false }
    }

    /// Code 2: a key holds what we cannot honour.
    pub fn unsupported(msg: impl Into<String>) -> Self {
        Self::new(2, msg)
    }

    /// Code 4: an environment variable is missing or wrong.
    pub fn environment(msg: impl Into<String>) -> Self {
        Self::new(4, msg)
    }

    /// Code 5: reading or writing failed.
    pub fn io(msg: impl Into<String>) -> Self {
        Self::new(5, msg)
    }

    /// Code 6: the configuration cannot be decoded.
    pub fn decode(msg: impl Into<String>) -> Self {
        Self::new(6, msg)
    }

    /// Code 7: the configuration is decoded and not valid.
    pub fn config(msg: impl Into<String>) -> Self {
        Self::new(7, msg)
    }

    /// Code 8: the namespace is the plugin's own.
    pub fn namespace(msg: impl Into<String>) -> Self {
        Self::new(8, msg)
    }

    /// Code 11: try again later. The daemon has said so, or does not answer: it is not told of it.
    pub fn later(msg: impl Into<String>, details: impl Into<String>) -> Self {
        Error { code: 11, msg: msg.into(), details: details.into(), is_told: true }
    }

    /// Code 50: no address could be given yet.
    pub fn unavailable(msg: impl Into<String>, details: impl Into<String>) -> Self {
        Error { code: 50, msg: msg.into(), details: details.into(), is_told: true }
    }

    /// Code 51: pods that run are cut off.
    pub fn limited(msg: impl Into<String>, details: impl Into<String>) -> Self {
        Error { code: 51, msg: msg.into(), details: details.into(), is_told: true }
    }

    /// Code 100: the kernel refused a step.
    pub fn kernel(doing: &str, source: impl fmt::Display) -> Self {
        Error { details: "cause=wiring_failed".to_owned(), ..Self::new(100, format!("{doing}: {source}")) }
    }

    /// Code 101: what CHECK found.
    pub fn check(msg: impl Into<String>) -> Self {
        Self::new(101, msg)
    }

    /// Code 102: a fault of the plugin itself.
    pub fn internal(msg: impl Into<String>) -> Self {
        Self::new(102, msg)
    }

    /// The document, in the words of the version that was asked for.
    pub fn json(&self, cni_version: &str) -> String {
        let mut document = json!({ "cniVersion": cni_version, "code": self.code, "msg": self.msg });
        if !self.details.is_empty() {
            document["details"] = json!(self.details);
        }
        document.to_string()
    }
}
