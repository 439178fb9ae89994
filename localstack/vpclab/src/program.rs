//! Where programs of the lab are.

use std::path::PathBuf;

use anyhow::Context;

/// The `vpclab` program: this one, or the one in the folder of the program that uses the library; VPCLAB_BIN names another.
pub fn program() -> anyhow::Result<PathBuf> {
    program_named("vpclab", "VPCLAB_BIN")
}

/// The same of a program that is built together with this one.
///
/// # Errors
///
/// It is not there.
pub fn program_named(name: &str, variable: &str) -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os(variable) {
        return Ok(named.into());
    }
    let own = std::env::current_exe().context("cannot tell which program this is")?;
    if own.file_name().is_some_and(|found| found == name) {
        return Ok(own);
    }
    let folders = own.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| {
        format!("the program {name} is not in the folder of this one; `cargo build -p {name}` makes it")
    })
}
