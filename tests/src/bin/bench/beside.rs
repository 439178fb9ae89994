//! Bursts of ADDs beside operators, and how long the operators wait meanwhile.

use comfy_table::{Table, presets::NOTHING};

use crate::{
    figures::{quantile, sorted},
    node::CALLERS,
    operators::{self, Answers, Operators},
};

/// The pod that operators ask about.
pub const STAYS: &str = "stays";

/// What operators do, and what a table calls it.
const KINDS: [(Operators, &str); 3] = [
    (Operators::Absent, "nobody asks"),
    (Operators::Ask, "four operators ask again and again"),
    (Operators::NeverRead, "four operators ask and never read"),
];

/// Bursts of ADDs beside operators of each kind.
pub struct Beside<'a> {
    pub turns: usize,
    pub socket: &'a std::path::Path,
}

impl Beside<'_> {
    /// The bursts of each of [`KINDS`], and how long answers took meanwhile.
    pub fn measure(
        &self,
        burst: &dyn Fn() -> anyhow::Result<serde_json::Value>,
        at_rest: &dyn Fn() -> anyhow::Result<()>,
    ) -> anyhow::Result<(Vec<Vec<serde_json::Value>>, Answers)> {
        let mut bursts = vec![Vec::new(); KINDS.len()];
        let mut answers = Answers::new();
        for _ in 0..self.turns {
            for ((operators, _), bursts) in KINDS.iter().zip(&mut bursts) {
                let working = operators.begin(self.socket, STAYS)?;
                bursts.push(burst()?);
                if *operators == Operators::NeverRead {
                    operators::ensure_stalled()?;
                }
                for (question, took) in working.end()? {
                    answers.entry(question).or_default().extend(took);
                }
                at_rest()?;
            }
        }
        answers.values_mut().for_each(|took| took.sort_by(f64::total_cmp));
        Ok((bursts, answers))
    }
}

/// ADDs per second of the bursts beside operators of this kind.
pub fn rate_beside(bursts: &[Vec<serde_json::Value>], operators: Operators) -> anyhow::Result<f64> {
    let of_kind = KINDS.iter().zip(bursts).find(|((kind, _), _)| *kind == operators);
    rate_of(of_kind.map_or(&[], |(_, bursts)| bursts))
}

fn rate_of(bursts: &[serde_json::Value]) -> anyhow::Result<f64> {
    sorted(bursts, "plugin_add_rate").map(|rates| quantile(&rates, 0.5))
}

pub fn rates_beside(bursts: &[Vec<serde_json::Value>]) -> anyhow::Result<Table> {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        &format!("{CALLERS} callers"),
        "ADD p50 ms",
        "ADDs per second",
        "rate / nobody's",
    ]);
    let alone = rate_beside(bursts, Operators::Absent)?;
    for ((_, name), bursts) in KINDS.iter().zip(bursts) {
        let p50 = sorted(bursts, "plugin_quiet_p50").map(|times| quantile(&times, 0.5))?;
        let rate = rate_of(bursts)?;
        table.add_row([(*name).to_owned(), format!("{p50:.2}"), format!("{rate:.0}"), format!("{:.2}", rate / alone)]);
    }
    Ok(table)
}

pub fn answered(answers: &Answers) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["answers meanwhile", "number", "p50 ms", "p99 ms"]);
    for (question, took) in answers {
        let [p50, p99] = [0.5, 0.99].map(|part| format!("{:.1}", quantile(took, part)));
        table.add_row([format!("{question:?}"), took.len().to_string(), p50, p99]);
    }
    table
}
