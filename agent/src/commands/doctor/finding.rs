//! A finding: what is wrong, and what to do about it. Names and cures are those of docs/causes.md.

use std::{collections::BTreeSet, fmt};

use serde::Serialize;

/// What causes mean, and what to do.
const CAUSES: &str = include_str!("../../../../docs/causes.md");

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A section of docs/causes.md.
    pub name: &'static str,
    /// What was seen, one sentence.
    pub what: String,
    /// What to do.
    pub cure: String,
    /// It may be harmless.
    pub note: bool,
}

impl Finding {
    /// Something is wrong.
    pub fn new(name: &str, what: impl Into<String>) -> Self {
        let (name, cure) = cure(name).unwrap_or(("internal", "docs/causes.md does not know it".to_owned()));
        Finding { name, what: what.into(), cure, note: false }
    }

    /// Something may be wrong.
    pub fn note(name: &str, what: impl Into<String>) -> Self {
        Finding { note: true, ..Finding::new(name, what) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { name, what, cure, note } = self;
        let kind = if *note { " (a note)" } else { "" };
        write!(f, "{name}{kind}: {what}\n  what to do: {cure}\n  docs/causes.md#{name}")
    }
}

/// The name as docs/causes.md has it, and its cure.
fn cure(name: &str) -> Option<(&'static str, String)> {
    let section = CAUSES.split("\n### ").skip(1).find(|section| section.lines().next() == Some(name))?;
    let (_, cure) = section.split_once("**What to do:**")?;
    let cure = cure.split("\n\n").next().unwrap_or_default();
    Some((section.lines().next()?, cure.split_whitespace().collect::<Vec<_>>().join(" ")))
}

/// The first of each name and words: two sources may see the same.
pub fn each_once(findings: impl Iterator<Item = Finding>) -> Vec<Finding> {
    let mut causes = BTreeSet::new();
    // One cause has one finding, whoever sees it; of drift, conflicts and the like each is another matter.
    let is_cause = |name: &str| enid_ipamd::Cause::ALL.iter().any(|cause| cause.name() == name);
    findings
        .filter(|finding| {
            let words = if is_cause(finding.name) { String::new() } else { finding.what.clone() };
            causes.insert((finding.name, words))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use enid_ipamd::Cause;

    use super::*;

    #[test]
    fn every_cause_has_a_section_with_a_cure() {
        for cause in Cause::ALL {
            let (name, cure) = cure(cause.name()).unwrap_or_else(|| panic!("docs/causes.md lacks {cause}"));
            assert!(name == cause.name() && cure.len() > 20, "{cause}: {cure}");
        }
        assert_eq!(cure("what"), None);
    }

    #[test]
    fn a_cause_that_two_see_is_told_once() {
        let of = |name, what| Finding::new(name, what);
        let found = [of("throttled", "daemon"), of("throttled", "doctor"), of("conflict", "a"), of("conflict", "b")];
        let told: Vec<String> = each_once(found.into_iter()).into_iter().map(|finding| finding.what).collect();
        assert_eq!(told, ["daemon", "a", "b"]);
    }
}
