//! GC (CNI spec 1.1.0, section 2): the runtime names the valid attachments, the daemon ends the others.

use crate::{config::Config, daemon::Daemon, error::Error};

/// Ends what the list leaves out and the kernel does not show either. A configuration without a list says nothing
/// about anybody: nothing ends.
pub fn gc(config: &Config) -> Result<(), Error> {
    let Some(valid) = config.valid_attachments()? else {
        note!("the configuration has no list of valid attachments, so none is ended");
        return Ok(());
    };
    let reply = Daemon::at(&config.socket).collect(&config.name, &valid)?;
    for kept in reply.kept {
        note!("{} of {} is not in the list and is kept, since its link stands", kept.ifname, kept.container);
    }
    if reply.kept_unnamed > 0 {
        note!("{} more are not in the list and are kept, since their links stand", reply.kept_unnamed);
    }
    Ok(())
}
