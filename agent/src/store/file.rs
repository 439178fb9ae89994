//! The store's file: opened, copied, and set aside where it is damaged or another instance's.

use std::{fs, path::Path};

use anyhow::Context;
use redb::{
    Database, DatabaseError, Key, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableError, Value,
    WriteTransaction,
};
use tracing::error;

pub(super) const META: TableDefinition<&str, &str> = TableDefinition::new("meta");
pub(super) const LEASES: TableDefinition<&str, &str> = TableDefinition::new("leases");
pub(super) const COOLDOWN: TableDefinition<&str, u64> = TableDefinition::new("cooldown");
pub(super) const SLOTS: TableDefinition<&str, u32> = TableDefinition::new("slots");
pub(super) const INTENTS: TableDefinition<&str, &str> = TableDefinition::new("intents");

/// Pages of the file that are kept in memory; redb's default is a gigabyte.
const CACHE_BYTES: usize = 1024 * 1024;

/// Opens or makes the file.
pub(super) fn create(path: &Path) -> Result<Database, DatabaseError> {
    Database::builder().set_cache_size(CACHE_BYTES).create(path)
}

/// Copies all tables.
pub(super) fn copy(from: &Database, to: &Database) -> anyhow::Result<()> {
    let (from, to) = (from.begin_read()?, to.begin_write()?);
    copy_table(&from, &to, META)?;
    copy_table(&from, &to, LEASES)?;
    copy_table(&from, &to, COOLDOWN)?;
    copy_table(&from, &to, SLOTS)?;
    copy_table(&from, &to, INTENTS)?;
    Ok(to.commit()?)
}

fn copy_table<K: Key + 'static, V: Value + 'static>(
    from: &ReadTransaction,
    to: &WriteTransaction,
    table: TableDefinition<K, V>,
) -> anyhow::Result<()> {
    let mut copied = to.open_table(table)?;
    for entry in from.open_table(table)?.iter()? {
        let (key, value) = entry?;
        copied.insert(key.value(), value.value())?;
    }
    Ok(())
}

/// The instance that a file is of; a new one is of none.
pub(super) fn instance_of(database: &Database) -> anyhow::Result<Option<String>> {
    match database.begin_read()?.open_table(META) {
        Ok(meta) => Ok(meta.get("instance")?.map(|value| value.value().to_owned())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}

/// Keeps a file that cannot be used for whoever wants to know. What it said is found again without it: the kernel shows
/// which addresses pods use, EC2 and metadata show what the node has.
pub(super) fn set_aside(path: &Path, kind: &str, why: &str) -> anyhow::Result<()> {
    let aside = (1..)
        .map(|number| path.with_extension(format!("redb.{kind}-{number}")))
        .find(|aside| !aside.exists())
        .context("no name is left for the store that is set aside")?;
    fs::rename(path, &aside).with_context(|| format!("cannot rename the store {}, which {why}", path.display()))?;
    error!(
        "the store {} {why}; it is renamed to {}, and a new one begins with what kernel and EC2 show",
        path.display(),
        aside.display()
    );
    Ok(())
}
