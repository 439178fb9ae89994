//! Which file is at a path: a name stays when its file is replaced.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

/// Device and number (stat(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode(u64, u64);

impl Inode {
    /// The file at this path, links not followed; `None` where nothing is.
    pub fn at(path: &Path) -> io::Result<Option<Self>> {
        match fs::symlink_metadata(path) {
            Ok(found) => Ok(Some(Inode(found.dev(), found.ino()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether the folder at this path has been removed and is only held by a mount: what is written there is nowhere.
pub fn is_removed_folder(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_dir() && found.nlink() == 0)
}
