//! Files that are there whole or not at all.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use anyhow::Context;

/// Removes a file; whether there was one.
pub fn remove(path: &Path) -> anyhow::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}

/// Writes a file beside its place, and moves it there.
pub fn put(target: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let doing = || format!("cannot write {}", target.display());
    // A bare name is in the working folder.
    let folder = target.parent().map_or(Path::new("/"), |folder| if folder == "" { Path::new(".") } else { folder });
    fs::create_dir_all(folder).with_context(doing)?;
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // Runtimes load *.conf, *.conflist and *.json; this name is none of them.
    let beside = folder.join(format!(".{name}.{}.new", std::process::id()));
    let write = || -> std::io::Result<()> {
        // What an earlier try has left goes; nobody else's file or link is written to.
        let _ = fs::remove_file(&beside);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, target)?;
        fs::File::open(folder)?.sync_all()
    };
    write().inspect_err(|_| drop(fs::remove_file(&beside))).with_context(doing)
}
