//! STATUS (CNI spec 1.1.0, section 2): whether this node's network is there.

use std::fs;

use crate::{config::Config, daemon::Daemon, error::Error};

/// Silent if it is; otherwise the cause, with code 50 while no address could be given since this boot, or 51 where what
/// the pods that run send does not arrive. The runtime tells the kubelet, and a node that is told of for five minutes
/// loses its pods: so a daemon that is away or silent is no reason, once it has served a pod of this boot.
pub fn status(config: &Config) -> Result<(), Error> {
    let said = match Daemon::at(&config.socket).status() {
        Ok(said) => said,
        Err(_) if has_served(config) => return Ok(()),
        Err(error) => return Err(Error::unavailable(error.msg, error.details)),
    };
    if said.ready {
        return Ok(());
    }
    let details = format!("cause={}", said.cause);
    if said.pods_cut_off {
        return Err(Error::limited(said.message, details));
    }
    Err(Error::unavailable(said.message, details))
}

/// Whether an address could be given since this boot: the daemon writes this configuration when one can, and names the
/// boot in it.
fn has_served(config: &Config) -> bool {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    !boot.is_empty() && config.boot_id.as_deref() == Some(boot.trim())
}
