//! Other network namespaces: entered for as long as it takes to open a socket there.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::stat::fstat,
    sys::statfs::{FsType, fstatfs},
};

use crate::{
    netfilter::conntrack::Conntrack,
    netlink::{error::Error, socket::Netlink},
};

/// What statfs says of namespace files (linux/magic.h, NSFS_MAGIC).
const NSFS: FsType = FsType(0x6e73_6673);

/// A network namespace, held open.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

impl Netns {
    /// Opens the namespace file that a runtime names in CNI_NETNS. Anything but a namespace is refused.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Nothing that a path may lead to can hold the opening up: a FIFO would.
        let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
        if fstatfs(&file)?.filesystem_type() != NSFS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a namespace"));
        }
        Ok(Netns { file, path: path.to_owned() })
    }

    /// The namespace this process runs in.
    pub fn own() -> io::Result<Self> {
        Self::open(Path::new("/proc/self/ns/net"))
    }

    /// Whether both are the same namespace: device and inode say so (namespaces(7)).
    pub fn is(&self, other: &Netns) -> io::Result<bool> {
        let (a, b) = (fstat(&self.file)?, fstat(&other.file)?);
        Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
    }

    /// The open namespace file, for a message that names it (IFLA_NET_NS_FD).
    pub fn file(&self) -> &File {
        &self.file
    }

    /// A netlink socket that speaks to this namespace for as long as it is open. The thread that
    /// entered the namespace ends here: no thread of ours stays in a foreign one.
    pub fn netlink(&self) -> Result<Netlink, Error> {
        self.within(Netlink::open)
    }

    /// The same for connection tracking.
    pub fn conntrack(&self) -> Result<Conntrack, Error> {
        self.within(Conntrack::open)
    }

    /// The same for whatever is opened there.
    ///
    /// # Errors
    ///
    /// The namespace cannot be entered, or what `open` says.
    pub fn within<T: Send>(&self, open: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
        let failed = |source| Error::new(format!("enter namespace {}", self.path.display()), source);
        aside(|| self.enter().and_then(|()| open())).map_err(failed)?
    }

    /// The same without a thread of its own, for a process that has only one and ends if it cannot come
    /// back: half the price, which counts in a plugin that runs once per pod.
    pub fn netlink_and_back(&self, own: &Netns) -> Result<Netlink, Error> {
        self.enter()?;
        let opened = Netlink::open();
        own.enter()?;
        opened
    }

    /// Switches IPv6 on for a link of this namespace and comes back: runtimes may have switched it off for the whole
    /// namespace (disable_ipv6 in the kernel's ip-sysctl documentation). `sys_net` as in [`allow_ipv6`].
    pub fn allow_ipv6_and_back(&self, sys_net: &Path, ifname: &str, own: &Netns) -> Result<(), Error> {
        self.enter()?;
        let allowed = allow_ipv6(sys_net, ifname);
        own.enter()?;
        allowed
    }

    /// Moves the calling thread here.
    fn enter(&self) -> Result<(), Error> {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::new(format!("enter namespace {}", self.path.display()), errno.into()))
    }
}

/// Where the kernel shows the values of whoever looks, and takes new ones.
pub const SYS_NET: &str = "/proc/sys/net";

/// The same in the calling thread's own namespace. `sys_net`: [`SYS_NET`], or where it is mounted writable.
pub fn allow_ipv6(sys_net: &Path, ifname: &str) -> Result<(), Error> {
    let path = sys_net.join("ipv6/conf").join(ifname).join("disable_ipv6");
    let failed = |source| Error::new(format!("switch IPv6 on in {}", path.display()), source);
    if fs::read_to_string(&path).map_err(failed)?.trim() == "0" {
        return Ok(());
    }
    fs::write(&path, "0").map_err(failed)
}

/// Does this on a thread that ends with it: none of ours stays in a foreign namespace. An error where no thread is to be
/// had.
pub(crate) fn aside<T: Send>(act: impl FnOnce() -> T + Send) -> io::Result<T> {
    let done = thread::scope(|scope| Ok::<_, io::Error>(thread::Builder::new().spawn_scoped(scope, act)?.join()))?;
    Ok(done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}
