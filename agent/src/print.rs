//! What commands print: tables for people, JSON and YAML for programs.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

use anyhow::Context;
use clap::{Arg, ArgMatches};
use comfy_table::{Attribute, Cell, Color, Table, presets::NOTHING};
use serde::Serialize;

/// How a command prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// What people look for first.
    Table,
    /// The same with all columns.
    Wide,
    /// One value, whole.
    Json,
    /// The same.
    Yaml,
}

const NAMES: [(&str, Output); 4] =
    [("table", Output::Table), ("wide", Output::Wide), ("json", Output::Json), ("yaml", Output::Yaml)];

impl Output {
    /// The flag.
    pub fn flag() -> Arg {
        Arg::new("output")
            .short('o')
            .long("output")
            .value_parser(NAMES.map(|(name, _)| name))
            .default_value("table")
            .help("Format; wide shows all columns")
    }

    /// What the flag says.
    pub fn of(matches: &ArgMatches) -> Self {
        let said = matches.try_get_one::<String>("output").ok().flatten();
        said.and_then(|said| NAMES.iter().find(|(name, _)| name == said)).map_or(Output::Table, |(_, output)| *output)
    }

    /// Whether it is for people.
    pub fn is_for_people(self) -> bool {
        matches!(self, Output::Table | Output::Wide)
    }
}

/// Prints a value: `text` for people, all of it for programs.
pub fn show<T: Serialize>(output: Output, value: &T, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    print(&match output {
        Output::Table | Output::Wide => text(),
        Output::Json => serde_json::to_string_pretty(value).context("cannot write JSON")?,
        Output::Yaml => serde_saphyr::to_string(value).context("cannot write YAML")?,
    })
}

/// Nobody reads any more, as behind `| head`: no fault, and nothing is left to do.
#[derive(Debug)]
pub struct ReaderGone;

impl fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads what is printed")
    }
}

impl std::error::Error for ReaderGone {}

/// Prints a text and ends its last line.
///
/// # Errors
///
/// It cannot; [`ReaderGone`] if nobody reads.
pub fn print(text: &str) -> anyhow::Result<()> {
    let text = text.strip_suffix('\n').unwrap_or(text);
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        printed => printed.context("cannot print"),
    }
}

/// A column of a table.
#[derive(Clone, Copy)]
pub struct Column {
    title: &'static str,
    is_wide: bool,
}

/// One that is always shown.
pub const fn column(title: &'static str) -> Column {
    Column { title, is_wide: false }
}

/// One that only `-o wide` shows.
pub const fn wide(title: &'static str) -> Column {
    Column { title, is_wide: true }
}

/// A table with a head.
pub fn table<const N: usize>(
    output: Output,
    columns: [Column; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let is_shown = |at: usize| output == Output::Wide || !columns[at].is_wide;
    let mut table = empty();
    let titles = columns.iter().enumerate().filter(|(at, _)| is_shown(*at));
    table.set_header(titles.map(|(_, column)| Cell::new(column.title).add_attribute(Attribute::Bold)));
    for row in rows {
        let cells = row.into_iter().enumerate().filter(|(at, _)| is_shown(*at));
        table.add_row(cells.map(|(_, cell)| if cell.is_empty() { "-".to_owned() } else { cell }));
    }
    text(&table)
}

/// How a line is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// It says how something is.
    Plain,
    /// All is well.
    Good,
    /// Somebody has to do something, soon or now.
    Bad,
}

/// Lines of a name and what is said of it.
pub fn lines(rows: impl IntoIterator<Item = (Mood, String, String)>) -> String {
    let mut table = empty();
    for (mood, name, words) in rows {
        let words = Cell::new(words);
        let words = match mood {
            Mood::Plain => words,
            Mood::Good => words.fg(Color::Green),
            Mood::Bad => words.fg(Color::Red),
        };
        table.add_row([Cell::new(name), words]);
    }
    text(&table)
}

/// Without the space before the first column.
fn text(table: &Table) -> String {
    let text = table.trim_fmt();
    text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

fn empty() -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    // Plain text in a pipe, and where somebody asks for it (https://no-color.org).
    if !io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty()) {
        table.force_no_tty();
    } else {
        table.enforce_styling();
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_wide_shows_all_columns_and_an_empty_cell_is_a_dash() {
        let of = |output| {
            let rows = [["a".to_owned(), String::new(), "c".to_owned()]];
            let text = table(output, [column("ONE"), column("TWO"), wide("THREE")], rows);
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(of(Output::Table), ["ONE TWO", "a -"]);
        assert_eq!(of(Output::Wide), ["ONE TWO THREE", "a - c"]);
    }
}
