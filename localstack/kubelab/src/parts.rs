//! Programs and images that a cluster is made of.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

/// Where they are: below `.tools` of this project.
#[derive(Clone, Debug)]
pub struct Parts {
    tools: PathBuf,
}

impl Parts {
    /// Finds them; an error names what is missing and what makes it.
    pub fn find() -> anyhow::Result<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools");
        let tools = folder
            .canonicalize()
            .with_context(|| format!("there is no {}; `make cluster-parts` makes it", folder.display()))?;
        let parts = Parts { tools };
        let programs = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"];
        for name in programs.into_iter().chain(["kubectl", "containerd", "ctr", "containerd-shim-runc-v2"]) {
            let path = parts.program(name);
            ensure!(path.is_file(), "there is no {}; tools/kubernetes/build makes it", path.display());
        }
        let images = parts.images()?;
        ensure!(!images.is_empty(), "there are no images; tools/kubernetes/images makes them");
        Ok(parts)
    }

    /// One of Kubernetes' programs, etcd or containerd's.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// Where Kubernetes' programs are.
    pub fn folder(&self) -> PathBuf {
        self.tools.join("kubernetes")
    }

    /// The chart's tool.
    pub fn helm(&self) -> PathBuf {
        self.tools.join("bin/helm")
    }

    /// The standard CNI plugins.
    pub fn plugins(&self) -> PathBuf {
        self.tools.join("cni-plugins")
    }

    /// Archives of images that each node gets.
    pub fn images(&self) -> anyhow::Result<Vec<PathBuf>> {
        let Ok(entries) = std::fs::read_dir(self.tools.join("images")) else { return Ok(Vec::new()) };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "tar"));
        paths.sort();
        Ok(paths)
    }
}
