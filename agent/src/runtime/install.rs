//! `enid init`: the plugin, and the standard ones of the image, put where the runtime looks for them. Each appears by
//! rename, complete and with its mode, so that it can be replaced while it runs.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::Context;

use crate::{host::file::put, settings::Settings};

/// Our plugin's file and type.
pub const PLUGIN: &str = "enid-cni";
/// The image's folder of standard plugins, beside our own.
const STANDARD: &str = "plugins";
/// Everybody may run a plugin.
const MODE: u32 = 0o755;

/// Installs what differs.
pub fn plugins(settings: &Settings) -> anyhow::Result<()> {
    for source in sources()? {
        let target = settings.bin_dir.join(source.file_name().unwrap_or_default());
        let content = fs::read(&source).with_context(|| format!("cannot read the plugin {}", source.display()))?;
        if fs::read(&target).is_ok_and(|there| there == content) {
            println!("{} is up to date", target.display());
            continue;
        }
        put(&target, &content, MODE)?;
        println!("installed {}", target.display());
    }
    Ok(())
}

/// What became of a plugin that was to be put back.
pub enum PutBack {
    /// It is there again.
    Done,
    /// What is there is what the image has.
    Same,
    /// The image has none.
    NoneThere,
}

/// Puts one plugin back, if the image has it.
pub fn put_back(target: &Path) -> anyhow::Result<PutBack> {
    let Some(source) = sources()?.into_iter().find(|source| source.file_name() == target.file_name()) else {
        return Ok(PutBack::NoneThere);
    };
    let content = fs::read(&source).with_context(|| format!("cannot read the plugin {}", source.display()))?;
    let mode = fs::metadata(target).map_or(0, |there| there.permissions().mode());
    if mode & MODE == MODE && fs::read(target).is_ok_and(|there| there == content) {
        return Ok(PutBack::Same);
    }
    put(target, &content, MODE)?;
    Ok(PutBack::Done)
}

/// Whether the image has a plugin of this name.
pub fn is_in_image(target: &Path) -> bool {
    sources().is_ok_and(|sources| sources.iter().any(|source| source.file_name() == target.file_name()))
}

/// The plugins that the image has.
fn sources() -> anyhow::Result<Vec<PathBuf>> {
    let ours = find_plugin()?;
    let standard = ours.with_file_name(STANDARD);
    let mut sources = vec![ours];
    if let Ok(found) = fs::read_dir(&standard) {
        let files = found.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_file());
        sources.extend(files);
    }
    sources.sort();
    Ok(sources)
}

fn find_plugin() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where enid is installed")?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    let places = [folder.join(PLUGIN), folder.join("../libexec/enid").join(PLUGIN)];
    let found = places.iter().find(|path| path.is_file());
    found.cloned().with_context(|| format!("the plugin is neither {} nor {}", places[0].display(), places[1].display()))
}
