//! Where the programs are that the tests run.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// The program of that name, from the folder of this one; ENID_BIN names another daemon.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os("ENID_BIN").filter(|_| name == "enid") {
        return Ok(named.into());
    }
    let own = std::env::current_exe().context("cannot tell which program this is")?;
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not built; `make build` does that"))
}

/// The plugin as it ships: small and static.
pub fn plugin() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell which program this is")?;
    let target = own.ancestors().find(|folder| folder.ends_with("debug")).and_then(Path::parent);
    let path = target.context("not below target/debug")?.join("x86_64-unknown-linux-musl/shim/enid-cni");
    anyhow::ensure!(path.is_file(), "{} is not built; `make build` does that", path.display());
    Ok(path)
}
