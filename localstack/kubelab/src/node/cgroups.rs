//! Each node has a cgroup of its own in every hierarchy, so that one kubelet does not remove another's.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use vpclab::wait_until;

const ROOT: &str = "/sys/fs/cgroup";

/// The machine's hierarchies, of version 1.
fn hierarchies() -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(ROOT).with_context(|| format!("cannot read {ROOT}"))?;
    let all = entries.flatten().map(|entry| entry.path()).filter(|path| path.join("cgroup.procs").is_file());
    // A second name of a hierarchy is a link.
    let all: Vec<PathBuf> = all.filter(|path| !path.is_symlink()).collect();
    ensure!(
        !all.is_empty() && !Path::new(ROOT).join("cgroup.controllers").exists(),
        "{ROOT} has no hierarchies of cgroup version 1; nodes are made for these only"
    );
    Ok(all)
}

/// Makes the cgroup; the files, separated by blanks, that take its processes.
pub fn create(name: &str) -> anyhow::Result<String> {
    let mut files = Vec::new();
    for hierarchy in hierarchies()? {
        let folder = hierarchy.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        // Until it has processors and memory, a cpuset takes no process.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read_to_string(hierarchy.join(file)) {
                fs::write(folder.join(file), all).with_context(|| format!("cannot write {file}"))?;
            }
        }
        files.push(folder.join("cgroup.procs").to_string_lossy().into_owned());
    }
    Ok(files.join(" "))
}

/// Removes what is below the cgroup: its processes have ended.
pub fn empty(name: &str) {
    for hierarchy in hierarchies().unwrap_or_default() {
        remove_below(&hierarchy.join(name));
    }
}

/// Removes the cgroups whose names begin so, with all that is below them. Processes that are ending keep theirs for a
/// moment.
pub fn remove(prefix: &str) {
    for hierarchy in hierarchies().unwrap_or_default() {
        let entries = fs::read_dir(&hierarchy).into_iter().flatten().flatten();
        for folder in
            entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).map(|entry| entry.path())
        {
            let _ = wait_until(Duration::from_secs(5), || {
                remove_below(&folder);
                !folder.exists() || fs::remove_dir(&folder).is_ok()
            });
        }
    }
}

fn remove_below(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_below(&entry.path());
            let _ = fs::remove_dir(entry.path());
        }
    }
}
