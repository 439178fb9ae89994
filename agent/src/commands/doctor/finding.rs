//! A finding: what is wrong, and what to do about it. Names and cures are those of docs/causes.md.

use std::fmt;

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
    /// What else was seen of this cause.
    pub also: Vec<String>,
    /// What to do.
    pub cure: String,
    /// It may be harmless.
    pub note: bool,
}

impl Finding {
    /// Something is wrong.
    pub fn new(name: &str, what: impl Into<String>) -> Self {
        let (name, cure) = cure(name).unwrap_or(("internal", "docs/causes.md does not know it".to_owned()));
        Finding { name, what: what.into(), also: Vec::new(), cure, note: false }
    }

    /// Something may be wrong.
    pub fn note(name: &str, what: impl Into<String>) -> Self {
        Finding { note: true, ..Finding::new(name, what) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { name, what, also, cure, note } = self;
        let kind = if *note { " (a note)" } else { "" };
        writeln!(f, "{name}{kind}: {what}")?;
        also.iter().try_for_each(|words| writeln!(f, "  also: {words}"))?;
        write!(f, "  what to do: {cure}\n  docs/causes.md#{name}")
    }
}

/// The name as docs/causes.md has it, and its cure.
fn cure(name: &str) -> Option<(&'static str, String)> {
    let section = CAUSES.split("\n### ").skip(1).find(|section| section.lines().next() == Some(name))?;
    let (_, cure) = section.split_once("**What to do:**")?;
    let cure = cure.split("\n\n").next().unwrap_or_default();
    Some((section.lines().next()?, cure.split_whitespace().collect::<Vec<_>>().join(" ")))
}

/// Each name and words once: two sources may see the same. One cause has one finding, with the words of all who see it; of drift,
/// conflicts and the like each is another matter.
pub fn each_once(findings: impl Iterator<Item = Finding>) -> Vec<Finding> {
    let is_cause = |name: &str| enid_ipamd::Cause::ALL.iter().any(|cause| cause.name() == name);
    let mut told: Vec<Finding> = Vec::new();
    for finding in findings {
        let is_same = |it: &&mut Finding| it.name == finding.name && (is_cause(it.name) || it.what == finding.what);
        match told.iter_mut().find(is_same) {
            None => told.push(finding),
            Some(first) if first.what != finding.what && !first.also.contains(&finding.what) => {
                first.also.push(finding.what);
            }
            Some(_) => {}
        }
    }
    told
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
        let told = each_once(found.into_iter());
        assert_eq!(told.iter().map(|finding| &*finding.what).collect::<Vec<_>>(), ["daemon", "a", "b"]);
        assert_eq!(told[0].also, ["doctor"]);
        assert!(told[0].to_string().starts_with("throttled: daemon\n  also: doctor\n  what to do: "));
    }
}
