//! `enid bundle`: what a support engineer asks for, in one archive: what the daemon says, what it has taken lately (the simulator
//! takes it again), stories of pods, the kernel, and what the doctor finds. Without a daemon it has the rest. Secrets are taken
//! out ([`secrets`]); names and addresses of pods, nodes and ENIs are in it.

mod kernel;
pub mod secrets;

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
};

use anyhow::{Context, bail};
use enid_api::v1::{
    GetPoolRequest, GetRecordingRequest, ListAddressesRequest, ListEnisRequest, ListFaultsRequest, ListLeasesRequest,
    ListOperationsRequest,
};
use flate2::{Compression, write::GzEncoder};
use serde::Serialize;
use tar::{Builder, Header};

use super::{
    connect::{debug, reply},
    doctor,
    words::moment,
};
use crate::{clock, record::kept, settings::Settings, store};

/// The folder in the archive.
const FOLDER: &str = "enid-bundle";
const CONTENTS: &str = "\
pool.json         state of the pool, plan, what is wrong, settings and what gives them
enis.json, addresses.json, leases.json
operations.json   the last 1,000 operations, with the time of each phase
faults.json       what does not agree between kernel, store and daemon
recording.json    what the daemon's state machine has taken lately; enid-sim replay FILE takes it again
doctor.json       what enid doctor finds
stories.json      what happened to pods in the last 24 hours
store.json        leases on disk
kernel/           rules, routes, links, addresses, nftables, values of /proc/sys/net
missing.txt       what could not be had, and why

The daemon's log is not in it: kubectl -n kube-system logs -l app.kubernetes.io/name=enid --prefix";

/// Writes the archive to a file, or to stdout (`-`).
///
/// # Errors
///
/// It cannot be written; what it should contain and does not is named in it.
pub async fn run(settings: &Settings, file: &str) -> anyhow::Result<()> {
    if file == "-" && io::stdout().is_terminal() {
        bail!("stdout is a terminal: redirect it (enid bundle > bundle.tar.gz), or name a file (--file bundle.tar.gz)");
    }
    let archive = archive(settings).await?;
    if file == "-" {
        let mut stdout = io::stdout();
        return stdout.write_all(&archive).and_then(|()| stdout.flush()).context("cannot write the archive");
    }
    // It may hold what is nobody else's business.
    crate::host::file::put(Path::new(file), &archive, 0o600)?;
    eprintln!("enid: {file} has {} KiB", archive.len() / 1024);
    Ok(())
}

/// An archive that is being made.
struct Archive {
    tar: Builder<GzEncoder<Vec<u8>>>,
    missing: Vec<String>,
    at: u64,
}

impl Archive {
    fn add(&mut self, name: &str, content: anyhow::Result<String>) -> anyhow::Result<()> {
        let content = match content {
            Ok(content) => secrets::without(&content),
            Err(failure) => {
                self.missing.push(format!("{name}: {failure:#}"));
                return Ok(());
            }
        };
        let mut header = Header::new_gnu();
        header.set_size(u64::try_from(content.len())?);
        header.set_mode(0o600);
        header.set_mtime(self.at / 1_000);
        let path = format!("{FOLDER}/{name}");
        self.tar.append_data(&mut header, &path, content.as_bytes()).with_context(|| format!("cannot add {name}"))
    }

    fn add_json<T: Serialize>(&mut self, name: &str, value: anyhow::Result<T>) -> anyhow::Result<()> {
        let text = value.and_then(|value| serde_json::to_string_pretty(&value).context("cannot write JSON"));
        self.add(name, text)
    }
}

async fn archive(settings: &Settings) -> anyhow::Result<Vec<u8>> {
    let at = clock::wall_ms();
    let tar = Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    let mut archive = Archive { tar, missing: Vec::new(), at };
    let head = format!(
        "A support archive of enid {} on node {}, {}.\n\n{CONTENTS}\n",
        env!("CARGO_PKG_VERSION"),
        settings.node_name,
        moment(at)
    );
    archive.add("README.txt", Ok(head))?;
    of_daemon(settings, &mut archive).await?;
    archive.add_json("doctor.json", Ok(doctor::found(settings).await))?;
    archive.add_json("stories.json", kept::all_stories(&settings.store_dir, &settings.run_dir))?;
    let leases = store::leases(&settings.store_dir, &settings.run_dir);
    archive.add_json("store.json", leases)?;
    for (name, content) in kernel::seen().await {
        archive.add(&format!("kernel/{name}"), content)?;
    }
    let missing = archive.missing.join("\n");
    archive.add("missing.txt", Ok(missing))?;
    let gzip = archive.tar.into_inner().context("cannot end the archive")?;
    gzip.finish().context("cannot compress the archive")
}

/// What the daemon says, each with a bound.
async fn of_daemon(settings: &Settings, archive: &mut Archive) -> anyhow::Result<()> {
    let mut debug = match debug(settings).await {
        Ok(debug) => debug,
        Err(failure) => {
            archive.missing.push(format!("{failure:#}"));
            return Ok(());
        }
    };
    // First: what follows is read a little later, and the plan is this one's.
    let recording = reply(debug.get_recording(GetRecordingRequest {})).await;
    let recording = recording.and_then(|said| String::from_utf8(said.json).context("it is no text"));
    archive.add("recording.json", recording)?;
    archive.add_json("pool.json", reply(debug.get_pool(GetPoolRequest {})).await)?;
    archive.add_json("enis.json", reply(debug.list_enis(ListEnisRequest {})).await)?;
    archive.add_json("addresses.json", reply(debug.list_addresses(ListAddressesRequest {})).await)?;
    archive.add_json("leases.json", reply(debug.list_leases(ListLeasesRequest {})).await)?;
    archive.add_json("operations.json", reply(debug.list_operations(ListOperationsRequest {})).await)?;
    archive.add_json("faults.json", reply(debug.list_faults(ListFaultsRequest {})).await)
}
