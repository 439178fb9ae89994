//! STATUS (CNI spec 1.1.0, section 2): whether an ADD would succeed now.

use crate::{config::Config, daemon::Daemon, error::Error};

/// Silent if the daemon can give an address; otherwise its cause, with code 50, or 51 where pods that run may be
/// cut off. A daemon that is away cannot serve an ADD either.
pub fn status(config: &Config) -> Result<(), Error> {
    let said = Daemon::at(&config.socket).status().map_err(|error| Error::unavailable(error.msg, error.details))?;
    if said.ready {
        return Ok(());
    }
    let mut details = format!("cause={}", said.cause);
    if said.retry_after_ms > 0 {
        details.push_str(&format!(" retry_after_ms={}", said.retry_after_ms));
    }
    if said.pods_at_risk {
        return Err(Error::limited(said.message, details));
    }
    Err(Error::unavailable(said.message, details))
}
