//! Where the `vpclab` program is.

use std::path::PathBuf;

use anyhow::Context;

/// The `vpclab` program: this one, or the one in the folder of the program that uses the library.
pub fn program() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os("VPCLAB_BIN") {
        return Ok(named.into());
    }
    let own = std::env::current_exe().context("cannot tell which program this is")?;
    if own.file_name().is_some_and(|name| name == "vpclab") {
        return Ok(own);
    }
    let folders = own.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join("vpclab")).find(|path| path.is_file());
    found.context("the program vpclab is not in the folder of this one; `cargo build -p vpclab` makes it")
}
