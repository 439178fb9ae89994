//! The stories of pods on disk: a file beside the store, and not in it, since a lease does not wait for a story to be written.

use std::{path::Path, sync::Arc, time::Duration};

use enid_api::v1::Operation;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use tokio::{task::spawn_blocking, time::sleep};
use tracing::warn;

use super::{Record, Stories, stories};
use crate::{
    clock,
    host::database::{is_damage, open_copy},
};

/// The file's name, in the store's folder.
pub const FILE: &str = "stories.redb";
/// What happened is on disk after so long.
const EVERY: Duration = Duration::from_secs(10);
/// Pages of the file that are kept in memory.
const CACHE_BYTES: usize = 64 * 1024;

const STORIES: TableDefinition<&str, &[u8]> = TableDefinition::new("stories");

/// The open file; `None` where there can be none, which holds nothing up.
pub struct Kept {
    database: Option<Arc<Database>>,
}

impl Kept {
    /// Opens or makes the file in the store's folder, and reads it. One that cannot be read is begun anew: pods do not depend
    /// on it.
    pub fn open(store_dir: &Path) -> (Self, Stories) {
        let path = store_dir.join(FILE);
        let opened = match create(&path) {
            Err(failure) if is_damage(&failure) => {
                warn!("the stories of pods are lost: {} is damaged: {failure}", path.display());
                let removed = std::fs::remove_file(&path).map_err(anyhow::Error::from);
                removed.and_then(|()| Ok(create(&path)?))
            }
            created => created.map_err(Into::into),
        };
        let read = opened.and_then(|database| Ok((all(&database)?, database)));
        match read {
            Ok((kept, database)) => {
                (Kept { database: Some(Arc::new(database)) }, Stories::of_kept(kept, clock::wall_ms()))
            }
            Err(failure) => {
                warn!("the stories of pods are not kept over a restart: {}: {failure:#}", path.display());
                (Kept { database: None }, Stories::default())
            }
        }
    }

    /// Writes what has changed, again and again.
    pub async fn keep(self: Arc<Self>, record: Arc<Record>) {
        let mut told = false;
        loop {
            sleep(EVERY).await;
            record.log_repeats();
            let (kept, from) = (self.clone(), record.clone());
            let written = spawn_blocking(move || kept.write(&from)).await.map_err(Into::into).flatten();
            if let Err(failure) = &written
                && !told
            {
                warn!("the stories of pods are not kept over a restart: {failure:#}");
            }
            told = written.is_err();
        }
    }

    /// Writes what has changed.
    ///
    /// # Errors
    ///
    /// The disk refuses; it is written with what changes next.
    pub fn write(&self, record: &Record) -> anyhow::Result<()> {
        let changed = record.state().stories.take_changed(clock::wall_ms());
        let Some(database) = self.database.as_ref().filter(|_| !changed.is_empty()) else { return Ok(()) };
        let written = written(database, &changed);
        if written.is_err() {
            record.state().stories.put_back(changed.into_iter().map(|(pod, _)| pod));
        }
        written
    }
}

fn written(database: &Database, changed: &[(String, Option<Vec<u8>>)]) -> anyhow::Result<()> {
    let txn = database.begin_write()?;
    {
        let mut table = txn.open_table(STORIES)?;
        for (pod, encoded) in changed {
            match encoded {
                Some(encoded) => drop(table.insert(&**pod, &**encoded)?),
                None => drop(table.remove(&**pod)?),
            }
        }
    }
    Ok(txn.commit()?)
}

type AsKept = Vec<(String, Vec<u8>)>;

fn create(path: &Path) -> Result<Database, DatabaseError> {
    Database::builder().set_cache_size(CACHE_BYTES).create(path)
}

fn all(database: &Database) -> anyhow::Result<AsKept> {
    let table = match database.begin_read()?.open_table(STORIES) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        table => table?,
    };
    let mut kept = AsKept::new();
    for entry in table.iter()? {
        let (pod, encoded) = entry?;
        kept.push((pod.value().to_owned(), encoded.value().to_owned()));
    }
    Ok(kept)
}

/// All stories as the last run of the daemon has left them, or as the one that runs has written them down.
///
/// # Errors
///
/// As of [`story`].
pub fn all_stories(store_dir: &Path, folder: &Path) -> anyhow::Result<Vec<(String, Vec<Operation>)>> {
    let kept = all(&open_copy(&store_dir.join(FILE), folder)?)?;
    Ok(kept.into_iter().map(|(pod, encoded)| (pod, stories::decode(&encoded))).collect())
}

/// A pod's story as the last run of the daemon has left it, while none runs.
///
/// # Errors
///
/// There is no file, or it cannot be read. `folder`: where a copy may be for a moment.
pub fn story(store_dir: &Path, folder: &Path, pod: &str) -> anyhow::Result<Vec<Operation>> {
    let kept = all(&open_copy(&store_dir.join(FILE), folder)?)?;
    Ok(kept.iter().find(|(name, _)| name == pod).map(|(_, encoded)| stories::decode(encoded)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{metrics::Counters, record::Kind};
    use enid_ipamd::PodRef;

    #[test]
    fn stories_outlive_a_run_and_a_damaged_file_is_begun_anew() {
        let dir = std::env::temp_dir().join(format!("enid-stories-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let counters = Arc::new(Counters::new().unwrap());
        let (kept, stories) = Kept::open(&dir);
        let record = Record::new(counters.clone(), stories, None);
        let pod = PodRef { namespace: "default".into(), name: "web".into() };
        record.note(Kind::Bound, Some(&pod), "bound");
        kept.write(&record).unwrap();
        drop(kept);
        assert_eq!(story(&dir, &dir, "default/web").unwrap()[0].kind, "BOUND");
        assert!(story(&dir, &dir, "default/other").unwrap().is_empty());
        let (kept, stories) = Kept::open(&dir);
        assert_eq!(Record::new(counters.clone(), stories, None).story("default/web").len(), 1);
        drop(kept);
        std::fs::write(dir.join(FILE), "no database").unwrap();
        let (kept, stories) = Kept::open(&dir);
        assert!(kept.database.is_some());
        assert!(Record::new(counters, stories, None).story("default/web").is_empty());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
