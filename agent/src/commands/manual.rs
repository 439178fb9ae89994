//! `enid completions` and `enid man`.

use std::io;

use anyhow::Context;
use clap::ArgMatches;
use clap_complete::Shell;

use crate::{cli::cli, print::print};

/// Completions for a shell.
pub fn completions(matches: &ArgMatches) -> anyhow::Result<()> {
    let shell = matches.get_one::<Shell>("shell").copied().context("no shell is named")?;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli(), "enid", &mut script);
    print(&String::from_utf8(script)?)
}

/// The manual page: the program, and then each of its commands.
pub fn page() -> anyhow::Result<()> {
    let mut page = Vec::new();
    written(&mut page).context("cannot write the manual page")?;
    print(&String::from_utf8(page)?)
}

fn written(page: &mut Vec<u8>) -> io::Result<()> {
    let cli = cli();
    let man = clap_mangen::Man::new(cli.clone());
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    page.extend(b".SH COMMANDS\n");
    for command in cli.get_subcommands() {
        let name = command.get_name();
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        page.extend(format!(".SS enid {name}\n{about}.\n").bytes());
        let flags = command
            .get_arguments()
            .filter(|flag| !flag.is_hide_set() && !["help", "version"].contains(&flag.get_id().as_str()));
        // The daemon's are its settings; docs/settings.md has them all.
        for flag in flags.filter(|_| !["agent", "init"].contains(&name)) {
            let name = flag
                .get_long()
                .map_or_else(|| flag.get_id().to_string().to_uppercase(), |long| format!("\\-\\-{long}"));
            let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
            page.extend(format!(".TP\n\\fB{name}\\fR\n{help}\n").bytes());
        }
    }
    man.render_extra_section(page)
}
