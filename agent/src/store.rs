//! The store: one `redb` file, written before anything is promised.
//!
//! It is stamped with the boot it speaks of. Under another boot every sandbox is gone, so leases become
//! addresses that rest from now on; slots and intents stay. The file carries a schema version; one from
//! the future is refused, not guessed.

use std::{fs, net::Ipv4Addr, os::unix::fs::DirBuilderExt, path::Path};

use anyhow::{Context, bail};
use enid_ipamd::{AttachmentKey, EniId, Lease, Ledger, Limits, Millis, PodRef, Write};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

const SCHEMA: &str = "1";
const META: TableDefinition<&str, &str> = TableDefinition::new("meta");
const LEASES: TableDefinition<&str, &str> = TableDefinition::new("leases");
const RESTS: TableDefinition<&str, u64> = TableDefinition::new("rests");
const SLOTS: TableDefinition<&str, u32> = TableDefinition::new("slots");
const INTENTS: TableDefinition<&str, ()> = TableDefinition::new("intents");

/// A lease as it is written: keys and values are JSON, so unknown fields of a later version pass.
#[derive(Serialize, Deserialize)]
struct StoredLease {
    address: Ipv4Addr,
    eni: EniId,
    slot: u32,
    pod: Option<PodRef>,
    index: u32,
}

/// The open file.
pub struct Store {
    database: Database,
}

impl Store {
    /// Opens or makes the file, and reads what it remembers.
    pub fn open(dir: &Path, boot_id: &str, now: Millis, rest_ms: u64) -> anyhow::Result<(Self, Ledger)> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("cannot make the store's folder {}", dir.display()))?;
        let path = dir.join("enid.redb");
        let database = Database::create(&path).with_context(|| format!("cannot open the store {}", path.display()))?;
        let store = Store { database };
        let ledger =
            store.read(boot_id, now, rest_ms).with_context(|| format!("cannot read the store {}", path.display()))?;
        Ok((store, ledger))
    }

    fn read(&self, boot_id: &str, now: Millis, rest_ms: u64) -> anyhow::Result<Ledger> {
        let txn = self.database.begin_write()?;
        let mut ledger = Ledger::default();
        {
            let mut meta = txn.open_table(META)?;
            let schema = meta.get("schema")?.map(|value| value.value().to_owned());
            if schema.as_deref().unwrap_or(SCHEMA) != SCHEMA {
                bail!("its schema is {schema:?}; this version of enid reads {SCHEMA:?}");
            }
            let same_boot = meta.get("boot")?.is_some_and(|value| value.value() == boot_id);
            meta.insert("schema", SCHEMA)?;
            meta.insert("boot", boot_id)?;
            let mut leases = txn.open_table(LEASES)?;
            let mut rests = txn.open_table(RESTS)?;
            for entry in leases.iter()? {
                let (key, value) = entry?;
                let key: AttachmentKey = serde_json::from_str(key.value())?;
                let lease: StoredLease = serde_json::from_str(value.value())?;
                ledger.leases.insert(key, lease.into());
            }
            for entry in rests.iter()? {
                let (address, until) = entry?;
                ledger.resting.insert(address.value().parse()?, Millis(until.value()));
            }
            if !same_boot {
                // The clock began anew, and the pods are gone: whatever rested or was held rests now.
                let until = now.plus(rest_ms);
                ledger.resting.values_mut().for_each(|at| *at = until);
                for lease in std::mem::take(&mut ledger.leases).into_values() {
                    ledger.resting.insert(lease.address, until);
                }
                leases.retain(|_, _| false)?;
                for (address, until) in &ledger.resting {
                    rests.insert(address.to_string().as_str(), until.0)?;
                }
            }
            for entry in txn.open_table(SLOTS)?.iter()? {
                let (eni, slot) = entry?;
                ledger.slots.insert(EniId(eni.value().to_owned()), slot.value());
            }
            for entry in txn.open_table(INTENTS)?.iter()? {
                ledger.intents.insert(entry?.0.value().to_owned());
            }
        }
        txn.commit()?;
        Ok(ledger)
    }

    /// Makes all of these durable, together.
    pub fn write(&self, writes: &[Write]) -> anyhow::Result<()> {
        let txn = self.database.begin_write()?;
        {
            let mut leases = txn.open_table(LEASES)?;
            let mut rests = txn.open_table(RESTS)?;
            let mut slots = txn.open_table(SLOTS)?;
            let mut intents = txn.open_table(INTENTS)?;
            for write in writes {
                match write {
                    Write::Lease(key, Some(lease)) => {
                        let (key, value) =
                            (serde_json::to_string(key)?, serde_json::to_string(&StoredLease::from(lease))?);
                        leases.insert(key.as_str(), value.as_str())?;
                    }
                    Write::Lease(key, None) => drop(leases.remove(serde_json::to_string(key)?.as_str())?),
                    Write::Rest(address, Some(until)) => drop(rests.insert(address.to_string().as_str(), until.0)?),
                    Write::Rest(address, None) => drop(rests.remove(address.to_string().as_str())?),
                    Write::Slot(eni, Some(slot)) => drop(slots.insert(eni.0.as_str(), slot)?),
                    Write::Slot(eni, None) => drop(slots.remove(eni.0.as_str())?),
                    Write::Intent(token, true) => drop(intents.insert(token.as_str(), ())?),
                    Write::Intent(token, false) => drop(intents.remove(token.as_str())?),
                }
            }
        }
        txn.commit()?;
        Ok(())
    }

    /// The limits of an instance type, if EC2 told them once.
    pub fn limits(&self, kind: &str) -> anyhow::Result<Option<Limits>> {
        let txn = self.database.begin_read()?;
        let meta = txn.open_table(META)?;
        let Some(value) = meta.get(format!("limits:{kind}").as_str())? else { return Ok(None) };
        let mut numbers = value.value().split(' ').map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(enis)), Some(Ok(addresses_per_eni))) => Ok(Some(Limits { enis, addresses_per_eni })),
            _ => Ok(None),
        }
    }

    /// Remembers them.
    pub fn keep_limits(&self, kind: &str, limits: Limits) -> anyhow::Result<()> {
        let txn = self.database.begin_write()?;
        let value = format!("{} {}", limits.enis, limits.addresses_per_eni);
        txn.open_table(META)?.insert(format!("limits:{kind}").as_str(), value.as_str())?;
        txn.commit()?;
        Ok(())
    }
}

impl From<StoredLease> for Lease {
    fn from(stored: StoredLease) -> Self {
        let StoredLease { address, eni, slot, pod, index } = stored;
        Lease::remembered(address, eni, slot, pod, index)
    }
}

impl From<&Lease> for StoredLease {
    fn from(lease: &Lease) -> Self {
        StoredLease {
            address: lease.address,
            eni: lease.eni.clone(),
            slot: lease.slot,
            pod: lease.pod.clone(),
            index: lease.index,
        }
    }
}

/// The id of this boot (random(4), /proc/sys/kernel/random/boot_id).
pub fn boot_id() -> anyhow::Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> AttachmentKey {
        AttachmentKey { network: "enid".into(), container: "c".into(), ifname: "eth0".into() }
    }

    fn written(dir: &Path) -> Ledger {
        let (store, ledger) = Store::open(dir, "boot-1", Millis(0), 30).unwrap();
        assert!(ledger.leases.is_empty());
        let lease = Lease::remembered(Ipv4Addr::new(10, 0, 1, 20), EniId("eni-1".into()), 1, None, 0);
        store
            .write(&[
                Write::Lease(key(), Some(lease)),
                Write::Rest(Ipv4Addr::new(10, 0, 1, 21), Some(Millis(99))),
                Write::Slot(EniId("eni-1".into()), Some(1)),
                Write::Intent("token".into(), true),
            ])
            .unwrap();
        drop(store);
        Store::open(dir, "boot-1", Millis(5), 30).unwrap().1
    }

    fn folder(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("enid-store-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn what_was_written_is_remembered() {
        let dir = folder("same");
        let ledger = written(&dir);
        assert_eq!(ledger.leases[&key()].address, Ipv4Addr::new(10, 0, 1, 20));
        assert_eq!(ledger.resting[&Ipv4Addr::new(10, 0, 1, 21)], Millis(99));
        assert_eq!(ledger.slots[&EniId("eni-1".into())], 1);
        assert!(ledger.intents.contains("token"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn another_boot_turns_leases_into_rest() {
        let dir = folder("reboot");
        written(&dir);
        let (_, ledger) = Store::open(&dir, "boot-2", Millis(7), 30).unwrap();
        assert!(ledger.leases.is_empty());
        assert_eq!(ledger.resting[&Ipv4Addr::new(10, 0, 1, 20)], Millis(37));
        assert_eq!(ledger.resting[&Ipv4Addr::new(10, 0, 1, 21)], Millis(37));
        assert_eq!(ledger.slots.len(), 1);
        fs::remove_dir_all(dir).unwrap();
    }
}
