//! What our files of redb have in common.

use std::{fs, io, path::Path};

use anyhow::Context;
use redb::{Database, DatabaseError, StorageError};

/// What cannot be mended by trying again.
pub fn is_damage(failure: &DatabaseError) -> bool {
    match failure {
        DatabaseError::Storage(StorageError::Corrupted(_)) | DatabaseError::RepairAborted => true,
        // redb says so of a file that is not one of its own.
        DatabaseError::Storage(StorageError::Io(error)) => error.kind() == io::ErrorKind::InvalidData,
        _ => false,
    }
}

/// Opens a copy of a file, which has no name any more: who only reads takes no lock that a daemon which starts would meet, repairs
/// nothing, and leaves nothing behind. `folder`: where the copy is for a moment.
///
/// # Errors
///
/// There is no such file, or it cannot be copied or read.
pub fn open_copy(path: &Path, folder: &Path) -> anyhow::Result<Database> {
    let doing = || format!("cannot read {}", path.display());
    let copy = folder.join(format!("copy-{}.redb", std::process::id()));
    fs::copy(path, &copy).with_context(doing)?;
    let opened = Database::open(&copy);
    fs::remove_file(&copy).with_context(doing)?;
    opened.with_context(doing)
}
