//! The store: one `redb` file, written before anything is promised.
//!
//! It is stamped with the instance and the boot it speaks of. Under another boot every sandbox is gone, so the addresses of
//! leases begin their cooldown; slots and intents stay. Of another instance nothing is true here (its disk may have been
//! copied, or be an image's): such a file is set aside, like a damaged one. It carries a schema version; another one is
//! refused, not guessed.

mod file;

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, bail};
use enid_ipamd::{AttachmentKey, EniId, Lease, Ledger, Limits, Macs, Millis, PodRef, Write};
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, WriteTransaction};
use serde::{Deserialize, Serialize};

use self::file::{COOLDOWN, INTENTS, LEASES, META, SLOTS, copy, create, instance_of, set_aside};
use crate::{
    host::{
        database::{is_damage, open_copy},
        inode::Inode,
    },
    record::kept,
    settings::remembered,
};

/// What a file without pods of another plugin has.
const SCHEMA: &str = "1";
/// What one has that holds leases with MACs of their own: an earlier version, which would give those links the MACs that it
/// derives, refuses it.
const SCHEMA_WITH_MACS: &str = "2";

/// A lease as it is written: keys and values are JSON, so unknown fields of a later version pass.
#[derive(Serialize, Deserialize)]
struct StoredLease {
    address: IpAddr,
    #[serde(default)]
    second: Option<IpAddr>,
    eni: EniId,
    slot: u32,
    pod: Option<PodRef>,
    index: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    macs: Option<Macs>,
}

/// The open file.
pub struct Store {
    path: PathBuf,
    /// The boot that it speaks of.
    boot_id: String,
    /// `None` after a failed write, until it can be opened again: redb gives up on a file that failed.
    database: Mutex<Option<Database>>,
    /// The file that was opened or written last.
    inode: Mutex<Option<Inode>>,
}

impl Store {
    /// Opens or makes the file, and reads what it remembers of this boot of this instance.
    pub fn open(dir: &Path, boot_id: &str, instance: &str, cooldown_ms: u64) -> anyhow::Result<(Self, Ledger)> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("cannot make the store's folder {}", dir.display()))?;
        let path = dir.join("enid.redb");
        let cannot_read = || format!("cannot read the store {}", path.display());
        let begun = || create(&path).with_context(|| format!("cannot make the store {}", path.display()));
        let database = match create(&path) {
            Ok(database) => match instance_of(&database).with_context(cannot_read)? {
                Some(other) if other != instance => {
                    drop(database);
                    set_aside(&path, "foreign", &format!("is of another instance, {other}; this is {instance}"))?;
                    begun()?
                }
                _ => database,
            },
            Err(failure) if is_damage(&failure) => {
                set_aside(&path, "damaged", &format!("is damaged ({failure})"))?;
                begun()?
            }
            Err(failure) => {
                return Err(failure).with_context(|| format!("cannot open the store {}", path.display()));
            }
        };
        let ledger = Self::read_from(&database, boot_id, instance, cooldown_ms).with_context(cannot_read)?;
        let inode = Mutex::new(Inode::at(&path).with_context(cannot_read)?);
        let (boot_id, database) = (boot_id.to_owned(), Mutex::new(Some(database)));
        Ok((Store { path, boot_id, database, inode }, ledger))
    }

    /// Writes all that it holds to a new file where somebody has removed or replaced the one that was there; whether.
    pub fn put_back(&self) -> anyhow::Result<bool> {
        let mut inode = self.inode.lock().unwrap_or_else(PoisonError::into_inner);
        if Inode::at(&self.path)? == *inode {
            return Ok(false);
        }
        let mut held = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = held.as_ref() else {
            bail!("the store {} is gone, and what it held is not known since a write failed", self.path.display());
        };
        let doing = || format!("cannot write the store {} again", self.path.display());
        fs::create_dir_all(self.path.parent().unwrap_or(Path::new("/"))).with_context(doing)?;
        let beside = self.path.with_extension("redb.new");
        if beside.exists() {
            fs::remove_file(&beside).with_context(doing)?;
        }
        let new = create(&beside).with_context(doing)?;
        copy(database, &new).with_context(doing)?;
        fs::rename(&beside, &self.path).with_context(doing)?;
        *held = Some(new);
        *inode = Inode::at(&self.path)?;
        Ok(true)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Works on the open file, and opens it again if the last write failed.
    fn with<T>(&self, work: impl FnOnce(&Database) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let mut held = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match held.take() {
            Some(database) => database,
            None => create(&self.path).with_context(|| format!("cannot open {} again", self.path.display()))?,
        };
        let done = work(&database)?;
        *held = Some(database);
        Ok(done)
    }

    fn read_from(database: &Database, boot_id: &str, instance: &str, cooldown_ms: u64) -> anyhow::Result<Ledger> {
        let txn = database.begin_write()?;
        let mut ledger = Ledger::default();
        {
            let mut meta = txn.open_table(META)?;
            let schema = meta.get("schema")?.map(|value| value.value().to_owned());
            match schema.as_deref() {
                None | Some(SCHEMA | SCHEMA_WITH_MACS) => {}
                Some(other) => bail!(
                    "its schema is {other:?}, and this version of enid reads {SCHEMA:?} and {SCHEMA_WITH_MACS:?}; start the version that wrote it again, or drain the node and remove the file"
                ),
            }
            let same_boot = meta.get("boot")?.is_some_and(|value| value.value() == boot_id);
            meta.insert("boot", boot_id)?;
            meta.insert("instance", instance)?;
            let mut leases = txn.open_table(LEASES)?;
            let mut cooling = txn.open_table(COOLDOWN)?;
            for entry in leases.iter()? {
                let (key, value) = entry?;
                let key: AttachmentKey = serde_json::from_str(key.value())?;
                let lease: StoredLease = serde_json::from_str(value.value())?;
                ledger.leases.insert(key, lease.into());
            }
            for entry in cooling.iter()? {
                let (address, until) = entry?;
                ledger.cooling.insert(address.value().parse()?, Millis(until.value()));
            }
            if !same_boot {
                ledger = ledger.at_another_boot(cooldown_ms);
                leases.retain(|_, _| false)?;
                for (address, until) in &ledger.cooling {
                    cooling.insert(address.to_string().as_str(), until.0)?;
                }
            }
            meta.insert("schema", schema_of(ledger.leases.values()))?;
            for entry in txn.open_table(SLOTS)?.iter()? {
                let (eni, slot) = entry?;
                ledger.slots.insert(EniId(eni.value().into()), slot.value());
            }
            for entry in txn.open_table(INTENTS)?.iter()? {
                let (token, intent) = entry?;
                ledger.intents.insert(token.value().to_owned(), serde_json::from_str(intent.value())?);
            }
        }
        txn.commit()?;
        Ok(ledger)
    }

    /// Makes all of these durable, together.
    pub fn write(&self, writes: &[Write]) -> anyhow::Result<()> {
        self.with(|database| Ok(Self::written(database, writes)?.commit()?))
    }

    /// The same, with the name of the network that pods of this boot are of: another plugin has begun it.
    pub fn take_over(&self, writes: &[Write], network: &str) -> anyhow::Result<()> {
        self.with(|database| {
            let txn = Self::written(database, writes)?;
            txn.open_table(META)?.insert("network", format!("{} {network}", self.boot_id).as_str())?;
            Ok(txn.commit()?)
        })
    }

    /// Forgets pods and their addresses, which are another system's from now on.
    pub fn hand_back(&self) -> anyhow::Result<()> {
        self.with(|database| {
            let txn = database.begin_write()?;
            txn.open_table(LEASES)?.retain(|_, _| false)?;
            txn.open_table(COOLDOWN)?.retain(|_, _| false)?;
            {
                let mut meta = txn.open_table(META)?;
                meta.remove("network")?;
                meta.insert("schema", SCHEMA)?;
            }
            Ok(txn.commit()?)
        })
    }

    /// The name of the network that another plugin has begun in this boot.
    pub fn network(&self) -> anyhow::Result<Option<String>> {
        self.with(|database| {
            let txn = database.begin_read()?;
            let noted = txn.open_table(META)?.get("network")?.map(|value| value.value().to_owned());
            let of_boot = noted.as_deref().and_then(|noted| noted.strip_prefix(&self.boot_id)?.strip_prefix(' '));
            Ok(of_boot.map(str::to_owned))
        })
    }

    fn written(database: &Database, writes: &[Write]) -> anyhow::Result<WriteTransaction> {
        let txn = database.begin_write()?;
        {
            let mut leases = txn.open_table(LEASES)?;
            let mut cooling = txn.open_table(COOLDOWN)?;
            let mut slots = txn.open_table(SLOTS)?;
            let mut intents = txn.open_table(INTENTS)?;
            let written = writes.iter().filter_map(|write| match write {
                Write::Lease(_, lease) => lease.as_ref(),
                _ => None,
            });
            if schema_of(written) == SCHEMA_WITH_MACS {
                txn.open_table(META)?.insert("schema", SCHEMA_WITH_MACS)?;
            }
            for write in writes {
                match write {
                    Write::Lease(key, Some(lease)) => {
                        let (key, value) =
                            (serde_json::to_string(key)?, serde_json::to_string(&StoredLease::from(lease))?);
                        leases.insert(key.as_str(), value.as_str())?;
                    }
                    Write::Lease(key, None) => drop(leases.remove(serde_json::to_string(key)?.as_str())?),
                    Write::Cooldown(address, Some(until)) => {
                        drop(cooling.insert(address.to_string().as_str(), until.0)?)
                    }
                    Write::Cooldown(address, None) => drop(cooling.remove(address.to_string().as_str())?),
                    Write::Slot(eni, Some(slot)) => drop(slots.insert(&*eni.0, slot)?),
                    Write::Slot(eni, None) => drop(slots.remove(&*eni.0)?),
                    Write::Intent(token, Some(intent)) => {
                        intents.insert(token.as_str(), serde_json::to_string(intent)?.as_str())?;
                    }
                    Write::Intent(token, None) => drop(intents.remove(token.as_str())?),
                }
            }
        }
        Ok(txn)
    }

    /// The leases that are on disk. They are read beside what is written: no ADD waits for it.
    pub fn held(&self) -> anyhow::Result<Vec<(AttachmentKey, Lease)>> {
        leases_in(&self.with(|database| Ok(database.begin_read()?))?)
    }

    /// Whether an address could be given since this boot.
    pub fn has_served(&self) -> anyhow::Result<bool> {
        self.with(|database| {
            let txn = database.begin_read()?;
            Ok(txn.open_table(META)?.get("served")?.is_some_and(|value| value.value() == self.boot_id))
        })
    }

    /// Remembers that one could.
    pub fn keep_served(&self) -> anyhow::Result<()> {
        self.set_meta("served", &self.boot_id)
    }

    /// The limits of an instance type, if EC2 named them once.
    pub fn limits(&self, kind: &str) -> anyhow::Result<Option<Limits>> {
        self.with(|database| Self::limits_in(database, kind))
    }

    fn limits_in(database: &Database, kind: &str) -> anyhow::Result<Option<Limits>> {
        let txn = database.begin_read()?;
        let meta = txn.open_table(META)?;
        let Some(value) = meta.get(format!("limits:{kind}").as_str())? else { return Ok(None) };
        let words: Option<Vec<u32>> = value.value().split(' ').map(|word| word.parse().ok()).collect();
        Ok(match *words.unwrap_or_default() {
            [enis, addresses, prefixes, further_cards, enis_per_further_card] => {
                let of_first = Limits::of_one_card(enis, addresses, prefixes == 1);
                Some(Limits { further_cards, enis_per_further_card, ..of_first })
            }
            _ => None,
        })
    }

    /// Remembers them.
    pub fn keep_limits(&self, kind: &str, limits: Limits) -> anyhow::Result<()> {
        let Limits { enis, addresses_per_eni, prefixes, further_cards, enis_per_further_card } = limits;
        let prefixes = u32::from(prefixes);
        let value = format!("{enis} {addresses_per_eni} {prefixes} {further_cards} {enis_per_further_card}");
        self.set_meta(&format!("limits:{kind}"), &value)
    }

    fn set_meta(&self, key: &str, value: &str) -> anyhow::Result<()> {
        self.with(|database| {
            let txn = database.begin_write()?;
            txn.open_table(META)?.insert(key, value)?;
            txn.commit()?;
            Ok(())
        })
    }
}

fn schema_of<'a>(mut leases: impl Iterator<Item = &'a Lease>) -> &'static str {
    if leases.any(|lease| lease.macs.is_some()) { SCHEMA_WITH_MACS } else { SCHEMA }
}

impl From<StoredLease> for Lease {
    fn from(stored: StoredLease) -> Self {
        let StoredLease { address, second, eni, slot, pod, index, macs } = stored;
        Lease::remembered((address, second), eni, slot, pod, index).with_macs(macs)
    }
}

impl From<&Lease> for StoredLease {
    fn from(lease: &Lease) -> Self {
        StoredLease {
            address: lease.address,
            second: lease.second,
            eni: lease.eni.clone(),
            slot: lease.slot,
            pod: lease.pod.clone(),
            index: lease.index,
            macs: lease.macs,
        }
    }
}

/// The leases as the last run of the daemon has left them, while none runs.
///
/// # Errors
///
/// There is no store, or it cannot be read. `folder`: where a copy may be for a moment.
pub fn leases(dir: &Path, folder: &Path) -> anyhow::Result<Vec<(AttachmentKey, Lease)>> {
    leases_in(&open_copy(&dir.join("enid.redb"), folder)?.begin_read()?)
}

fn leases_in(txn: &ReadTransaction) -> anyhow::Result<Vec<(AttachmentKey, Lease)>> {
    let mut leases = Vec::new();
    for entry in txn.open_table(LEASES)?.iter()? {
        let (key, lease) = entry?;
        let lease: StoredLease = serde_json::from_str(lease.value())?;
        leases.push((serde_json::from_str(key.value())?, lease.into()));
    }
    Ok(leases)
}

/// Whether a file of the store's folder is the store, one that was set aside, pods' stories, or what NodeConfigs gave.
pub fn is_file_of_ours(name: &str) -> bool {
    name.starts_with("enid.redb") || name == kept::FILE || name.trim_start_matches('.').starts_with(remembered::FILE)
}

/// The id of this boot (random(4), /proc/sys/kernel/random/boot_id).
pub fn boot_id() -> anyhow::Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use enid_ipamd::Intent;

    use super::*;

    const HERE: &str = "i-1 (account 123, region us-east-1)";

    fn address(last: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 0, 1, last))
    }

    fn key() -> AttachmentKey {
        AttachmentKey { network: "enid".into(), container: "c".into(), ifname: "eth0".into() }
    }

    fn written(dir: &Path) -> Ledger {
        let (store, ledger) = Store::open(dir, "boot-1", HERE, 30).unwrap();
        assert!(ledger.leases.is_empty());
        let second = Some("2001:db8::20".parse().unwrap());
        let lease = Lease::remembered((address(20), second), EniId("eni-1".into()), 1, None, 0);
        store
            .write(&[
                Write::Lease(key(), Some(lease)),
                Write::Cooldown(address(21), Some(Millis(99))),
                Write::Slot(EniId("eni-1".into()), Some(1)),
                Write::Intent("token".into(), Some(Intent::Delete(EniId("eni-9".into())))),
            ])
            .unwrap();
        drop(store);
        Store::open(dir, "boot-1", HERE, 30).unwrap().1
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
        let held: Vec<IpAddr> = ledger.leases[&key()].addresses().collect();
        assert_eq!(held, [address(20), "2001:db8::20".parse().unwrap()]);
        assert_eq!(ledger.cooling[&address(21)], Millis(99));
        assert_eq!(ledger.slots[&EniId("eni-1".into())], 1);
        assert_eq!(ledger.intents["token"], Intent::Delete(EniId("eni-9".into())));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn another_boot_begins_the_cooldown_of_every_address() {
        let dir = folder("reboot");
        written(&dir);
        let (_, ledger) = Store::open(&dir, "boot-2", HERE, 30).unwrap();
        assert!(ledger.leases.is_empty());
        assert_eq!(ledger.cooling[&address(20)], Millis(30));
        assert_eq!(ledger.cooling[&address(21)], Millis(30));
        assert_eq!(ledger.cooling.len(), 3, "both addresses of the lease are cooling");
        assert_eq!(ledger.slots.len(), 1);
        fs::remove_dir_all(dir).unwrap();
    }

    /// The kind: state that belongs to another identity.
    #[test]
    fn a_store_of_another_instance_is_set_aside() {
        let dir = folder("foreign");
        written(&dir);
        let there = "i-2 (account 123, region us-east-1)";
        let (store, ledger) = Store::open(&dir, "boot-1", there, 30).unwrap();
        assert_eq!(ledger, Ledger::default());
        assert!(dir.join("enid.redb.foreign-1").is_file());
        drop(store);
        // It is this one's from now on; what was set aside stays as it was.
        Store::open(&dir, "boot-1", there, 30).unwrap();
        assert!(!dir.join("enid.redb.foreign-2").exists());
        fs::rename(dir.join("enid.redb.foreign-1"), dir.join("enid.redb")).unwrap();
        let (_, ledger) = Store::open(&dir, "boot-1", HERE, 30).unwrap();
        assert!(ledger.leases.contains_key(&key()));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn limits_are_kept_and_damaged_ones_are_none() {
        let dir = folder("limits");
        let (store, _) = Store::open(&dir, "boot-1", HERE, 30).unwrap();
        assert_eq!(store.limits("m5.large").unwrap(), None);
        for damaged in ["", "3 10", "3 ten 1 0 0", "3 10 1 1"] {
            let written = store.with(|database| {
                let txn = database.begin_write()?;
                txn.open_table(META)?.insert("limits:m5.large", damaged)?;
                Ok(txn.commit()?)
            });
            written.unwrap();
            assert_eq!(store.limits("m5.large").unwrap(), None, "{damaged:?}");
        }
        let limits = Limits { further_cards: 3, enis_per_further_card: 15, ..Limits::of_one_card(15, 50, true) };
        store.keep_limits("m5.large", limits).unwrap();
        assert_eq!(store.limits("m5.large").unwrap(), Some(limits));
        drop(store);
        fs::remove_dir_all(dir).unwrap();
    }

    /// The kind: an earlier version gives the links of adopted pods MACs that their pods do not know.
    #[test]
    fn leases_over_links_of_another_plugin_keep_earlier_versions_away() {
        let dir = folder("macs");
        written(&dir);
        let schema = |store: &Store| {
            let read = store.with(|database| {
                Ok(database.begin_read()?.open_table(META)?.get("schema")?.map(|value| value.value().to_owned()))
            });
            read.unwrap().unwrap()
        };
        let (store, _) = Store::open(&dir, "boot-1", HERE, 30).unwrap();
        assert_eq!(schema(&store), "1");
        let macs = Some(Macs { host: [0xd2, 0xc6, 7, 0xdb, 6, 0x1c], pod: [0x8e, 0xa5, 0xe0, 0x96, 0x8f, 0xce] });
        let adopted = AttachmentKey { network: "aws-cni".into(), ..key() };
        let lease = Lease::remembered((address(30), None), EniId("eni-1".into()), 1, None, 0).with_macs(macs);
        assert_eq!(store.network().unwrap(), None);
        store.take_over(&[Write::Lease(adopted.clone(), Some(lease))], "aws-cni").unwrap();
        assert_eq!((schema(&store), store.network().unwrap()), ("2".to_owned(), Some("aws-cni".to_owned())));
        drop(store);
        let (store, ledger) = Store::open(&dir, "boot-1", HERE, 30).unwrap();
        assert_eq!((ledger.leases[&adopted].macs, schema(&store).as_str()), (macs, "2"));
        store.write(&[Write::Lease(adopted, None)]).unwrap();
        drop(store);
        assert_eq!(schema(&Store::open(&dir, "boot-1", HERE, 30).unwrap().0), "1", "none is left");
        assert_eq!(Store::open(&dir, "boot-2", HERE, 30).unwrap().0.network().unwrap(), None);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_node_that_is_given_back_keeps_no_pods() {
        let dir = folder("given-back");
        written(&dir);
        let (store, ledger) = Store::open(&dir, "boot-1", HERE, 30).unwrap();
        assert!(!ledger.leases.is_empty());
        store.take_over(&[], "aws-cni").unwrap();
        store.hand_back().unwrap();
        assert_eq!(store.network().unwrap(), None);
        drop(store);
        let (_, after) = Store::open(&dir, "boot-1", HERE, 30).unwrap();
        assert!(after.leases.is_empty() && after.cooling.is_empty());
        assert_eq!(after.slots, ledger.slots, "its links may still be of a device group");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_store_of_another_schema_is_refused() {
        let dir = folder("schema");
        written(&dir);
        let database = Database::create(dir.join("enid.redb")).unwrap();
        let txn = database.begin_write().unwrap();
        txn.open_table(META).unwrap().insert("schema", "9").unwrap();
        txn.commit().unwrap();
        drop(database);
        let refused = format!("{:#}", Store::open(&dir, "boot-1", HERE, 30).err().unwrap());
        assert!(refused.contains("\"9\""), "{refused}");
        fs::remove_dir_all(dir).unwrap();
    }
}
