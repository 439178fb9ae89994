//! What our files of redb have in common.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

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

/// A copy of a file, opened: who only reads takes no lock that a daemon which starts would meet, and repairs nothing.
pub struct Copied {
    /// The copy.
    pub database: Database,
    path: PathBuf,
}

impl Copied {
    /// Copies a file into `folder`, and opens the copy.
    ///
    /// # Errors
    ///
    /// There is no such file, or it cannot be copied or read.
    pub fn open(path: &Path, folder: &Path) -> anyhow::Result<Self> {
        let doing = || format!("cannot read {}", path.display());
        let copy = folder.join(format!("copy-{}.redb", std::process::id()));
        fs::copy(path, &copy).with_context(doing)?;
        match Database::open(&copy) {
            Ok(database) => Ok(Copied { database, path: copy }),
            Err(failure) => {
                let _ = fs::remove_file(&copy);
                Err(failure).with_context(doing)
            }
        }
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
