//! What NodeConfigs gave when the API server was last heard, for a start without it: a file beside the store.

use std::{fs, path::PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::{
    Settings,
    given::{Given, Overrides},
};
use crate::host::file;

/// In ENID_STORE_DIR.
pub const FILE: &str = "node-config.json";

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Whose it is: a disk that became another node's says nothing of that one.
    node: String,
    /// What NodeConfigs gave last.
    pub heard: Overrides,
    /// What they gave to the last start that succeeded: the pods have it.
    #[serde(default)]
    pub started: Overrides,
}

fn path(settings: &Settings) -> PathBuf {
    settings.store_dir.join(FILE)
}

/// What was written; `None` if this node has never heard of NodeConfigs. One that makes no sense is as good as none.
pub fn read(settings: &Settings) -> Option<Remembered> {
    let text = fs::read(path(settings)).ok()?;
    let remembered: Remembered = serde_json::from_slice(&text).ok()?;
    (remembered.node == settings.node_name).then_some(remembered)
}

/// The settings with what NodeConfigs have given to this node.
pub fn as_on_node(given: &Given, settings: Settings) -> Settings {
    let heard = read(&settings).unwrap_or_default().started;
    let (accepted, _) = given.accept(heard, &Overrides::new());
    given.with(accepted).read().unwrap_or(settings)
}

/// Whether the file is there.
pub fn is_there(settings: &Settings) -> bool {
    path(settings).exists()
}

/// Writes it.
///
/// # Errors
///
/// The disk refuses.
pub fn write(settings: &Settings, heard: &Overrides, started: &Overrides) -> anyhow::Result<()> {
    let remembered = Remembered { node: settings.node_name.clone(), heard: heard.clone(), started: started.clone() };
    let text = serde_json::to_vec_pretty(&remembered).context("what NodeConfigs give makes no JSON")?;
    file::put(&path(settings), &text, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::given::Override;

    #[test]
    fn it_is_the_nodes_own() {
        let folder = std::env::temp_dir().join(format!("enid-remembered-{}", std::process::id()));
        let mut settings = Settings::read(&|_| None).unwrap();
        settings.store_dir = folder.clone();
        settings.node_name = "a".to_owned();
        assert_eq!(read(&settings), None);
        let value = Override { value: "3".to_owned(), config: "gpu".to_owned() };
        let overrides = Overrides::from([("MAX_ENI".to_owned(), value)]);
        write(&settings, &overrides, &Overrides::new()).unwrap();
        assert_eq!(read(&settings).unwrap().heard, overrides);
        settings.node_name = "b".to_owned();
        assert_eq!(read(&settings), None);
        fs::write(path(&settings), "half").unwrap();
        settings.node_name = "a".to_owned();
        assert_eq!(read(&settings), None);
        fs::remove_dir_all(folder).unwrap();
    }
}
