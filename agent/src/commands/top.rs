//! `enid top`: the node as it changes.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, IsTerminal, Write},
    time::Duration,
};

use anyhow::Context;
use crossterm::{
    cursor,
    event::{self, Event, KeyCode, KeyModifiers},
    execute,
    terminal::{self, Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen},
};
use enid_api::v1::{GetPoolRequest, Operation, Pool, WatchOperationsRequest};
use tokio::time::{Instant, timeout_at};

use super::{
    connect::{debug, reply},
    events::line,
    lists::many,
    plan, status,
    words::took,
};
use crate::{
    clock,
    print::{Mood, lines, print},
    settings::Settings,
};

/// It is drawn so often.
const LOOK: Duration = Duration::from_secs(1);
/// What is counted has ended within so long.
const WINDOW_MS: u64 = 60_000;
/// Operations that are shown as lines.
const LAST: usize = 8;

/// Shows the node until q or control-C, or as often as asked. Where stdout is no terminal the looks follow one another as text.
pub async fn run(settings: &Settings, times: Option<u64>) -> anyhow::Result<()> {
    let mut debug = debug(settings).await?;
    let mut ended = reply(debug.watch_operations(WatchOperationsRequest {})).await?;
    let screen = io::stdout().is_terminal().then(Screen::new).transpose().context("cannot draw on the terminal")?;
    let mut recent = VecDeque::new();
    for look in 1.. {
        let pool = reply(debug.get_pool(GetPoolRequest {})).await?;
        let text = drawn(&pool, &recent);
        match &screen {
            Some(screen) => screen.draw(&text).context("cannot draw on the terminal")?,
            None => print(&text)?,
        }
        if times.is_some_and(|times| look >= times) {
            break;
        }
        let until = Instant::now() + LOOK;
        while let Ok(message) = timeout_at(until, ended.message()).await {
            let message = message?.context("the daemon has ended")?;
            recent.extend(message.operation);
            if screen.as_ref().is_some_and(Screen::is_left) {
                return Ok(());
            }
        }
        if screen.as_ref().is_some_and(Screen::is_left) {
            break;
        }
        let since = clock::wall_ms().saturating_sub(WINDOW_MS);
        recent.retain(|operation: &Operation| operation.began_unix_ms + operation.took_us / 1_000 >= since);
    }
    Ok(())
}

fn drawn(pool: &Pool, recent: &VecDeque<Operation>) -> String {
    let plain = |name: &str, words: String| (Mood::Plain, name.to_owned(), words);
    let mut rows = vec![
        plain("node", format!("{} ({})", pool.node, pool.instance_type)),
        plain(
            "addresses",
            format!(
                "{} assigned, {} cooling, {} available of {}",
                pool.assigned,
                pool.cooling,
                many(pool.available),
                many(pool.total)
            ),
        ),
        plain("ENIs", format!("{} of {}", pool.enis, pool.eni_max)),
        plain("ADDs that wait", pool.waiting.to_string()),
    ];
    rows.extend(status::troubles(pool).into_iter().map(|(name, words)| (Mood::Bad, name, words)));
    rows.extend(pool.plan.as_ref().map(plan::rows).unwrap_or_default());
    let mut by_kind: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    recent.iter().for_each(|operation| by_kind.entry(&operation.kind).or_default().push(operation));
    for (kind, operations) in by_kind {
        let mut times: Vec<u64> = operations.iter().map(|operation| operation.took_us).collect();
        times.sort_unstable();
        let (median, slowest) = (times[times.len() / 2], times.last().copied().unwrap_or_default());
        let failed = operations.iter().filter(|operation| operation.outcome != "done").count();
        let words = format!(
            "{} in 60 s, {failed} of them not done; median {}, slowest {}",
            operations.len(),
            took(median),
            took(slowest)
        );
        rows.push(plain(kind, words));
    }
    let last = recent.iter().rev().take(LAST).map(line).collect::<Vec<_>>();
    [lines(rows)].into_iter().chain(last.into_iter().rev()).collect::<Vec<_>>().join("\n")
}

/// The terminal while it is drawn on: it is as before when this is dropped.
struct Screen;

impl Screen {
    fn new() -> io::Result<Self> {
        terminal::enable_raw_mode()?;
        let screen = Screen;
        execute!(io::stdout(), EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }

    fn draw(&self, text: &str) -> io::Result<()> {
        let (width, height) = terminal::size()?;
        let mut out = io::stdout();
        execute!(out, cursor::MoveTo(0, 0), Clear(ClearType::All))?;
        for line in text.lines().take(usize::from(height)) {
            let shown: String = line.chars().take(usize::from(width)).collect();
            write!(out, "{shown}\r\n")?;
        }
        out.flush()
    }

    /// Whether somebody wants to leave.
    fn is_left(&self) -> bool {
        while event::poll(Duration::ZERO).unwrap_or_default() {
            if let Ok(Event::Key(key)) = event::read() {
                let is_interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                if is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                    return true;
                }
            }
        }
        false
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // There is nothing better to do with a terminal that has gone.
        let _ = execute!(io::stdout(), LeaveAlternateScreen, cursor::Show);
        let _ = terminal::disable_raw_mode();
    }
}
