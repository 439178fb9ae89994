//! How programs find the API server and who they are.

use std::path::Path;

use anyhow::Context;
use serde_json::json;

use crate::pki::Pki;

/// Writes a kubeconfig for the holder of a certificate. It names files, so it is of use on this machine only.
pub fn write(path: &Path, server: &str, pki: &Pki, certificate: &str) -> anyhow::Result<()> {
    let user = json!({
        "client-certificate": pki.path(&format!("{certificate}.crt")),
        "client-key": pki.path(&format!("{certificate}.key")),
    });
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "lab", "cluster": { "server": server, "certificate-authority": pki.path("ca.crt") } }],
        "users": [{ "name": certificate, "user": user }],
        "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": certificate } }],
        "current-context": "lab",
    });
    std::fs::write(path, config.to_string()).with_context(|| format!("cannot write {}", path.display()))
}
