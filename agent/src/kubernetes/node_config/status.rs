//! What a NodeConfig's status is to say. All nodes that it names write into the one object, so each adds and removes nothing
//! but itself, and few of them are named.

use std::collections::BTreeSet;

use super::{
    choose::{Problem, Reason},
    object::{Entry, NodeConfigStatus},
};

/// Nodes that an entry names.
const NODES: usize = 8;
/// Entries: more mistakes than that are not made in one object.
const ENTRIES: usize = 64;

/// The status that an object is to have, if not the one that it has. `problems`: this node's; `None`: the object does not
/// name the node.
pub fn wanted(
    now: Option<&NodeConfigStatus>,
    generation: i64,
    node: &str,
    problems: Option<&BTreeSet<Problem>>,
) -> Option<NodeConfigStatus> {
    let before = now.cloned().unwrap_or_default();
    let mut status = before.clone();
    if problems.is_some() && status.observed_generation != generation {
        // It is about what the object was.
        status = NodeConfigStatus { observed_generation: generation, ..NodeConfigStatus::default() };
    }
    let none = BTreeSet::new();
    let mine: Vec<Entry> = problems.unwrap_or(&none).iter().map(|problem| entry(problem, node)).collect();
    for entry in &mut status.problems {
        if !mine.iter().any(|mine| is_same(mine, entry)) {
            entry.nodes.retain(|name| name != node);
        }
    }
    status.problems.retain(|entry| !entry.nodes.is_empty());
    for entry in mine {
        let has_room = status.problems.len() < ENTRIES;
        match status.problems.iter_mut().find(|known| is_same(known, &entry)) {
            Some(known) if known.nodes.len() < NODES && !known.nodes.iter().any(|name| name == node) => {
                known.nodes.push(node.to_owned());
                known.nodes.sort();
            }
            Some(_) => {}
            None if has_room => status.problems.push(entry),
            None => {}
        }
    }
    status.problems.sort_by(|a, b| (&a.setting, &a.message).cmp(&(&b.setting, &b.message)));
    (status != before).then_some(status)
}

fn entry(problem: &Problem, node: &str) -> Entry {
    let reason = match problem.reason {
        Reason::UnknownSetting => "UnknownSetting",
        Reason::OfTheChart => "OfTheChart",
        Reason::BadValue => "BadValue",
        Reason::BadSelector => "BadSelector",
        Reason::Tie => "Tie",
        Reason::AtNextStart => "AtNextStart",
        Reason::Refused => "Refused",
    };
    let Problem { setting, message, .. } = problem.clone();
    Entry { setting, reason: reason.to_owned(), message, nodes: vec![node.to_owned()] }
}

fn is_same(one: &Entry, other: &Entry) -> bool {
    (&one.setting, &one.reason, &one.message) == (&other.setting, &other.reason, &other.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(setting: &str) -> Problem {
        Problem { setting: setting.to_owned(), reason: Reason::Tie, message: "a, b".to_owned() }
    }

    fn nodes(status: &NodeConfigStatus) -> Vec<(&str, usize)> {
        status.problems.iter().map(|entry| (entry.setting.as_str(), entry.nodes.len())).collect()
    }

    #[test]
    fn each_node_adds_and_removes_itself_and_a_few_are_named() {
        let (none, tie) = (BTreeSet::new(), BTreeSet::from([problem("MAX_ENI")]));
        let mut status = wanted(None, 1, "n0", Some(&none)).unwrap();
        assert_eq!((status.observed_generation, nodes(&status)), (1, vec![]));
        // What all nodes would write is written by one of them.
        assert_eq!(wanted(Some(&status), 1, "n1", Some(&none)), None);
        for number in 0..20 {
            if let Some(new) = wanted(Some(&status), 1, &format!("n{number}"), Some(&tie)) {
                status = new;
            }
        }
        assert_eq!(nodes(&status), [("MAX_ENI", NODES)]);
        let without = wanted(Some(&status), 1, "n0", Some(&none)).unwrap();
        assert_eq!(nodes(&without), [("MAX_ENI", NODES - 1)]);
        // A node that is not named any more takes its name away and nothing else.
        let without = wanted(Some(&without), 2, "n1", None).unwrap();
        assert_eq!((without.observed_generation, nodes(&without)), (1, vec![("MAX_ENI", NODES - 2)]));
        assert_eq!(wanted(Some(&without), 2, "n19", None), None);
        // Another generation begins anew.
        let anew = wanted(Some(&without), 2, "n19", Some(&BTreeSet::from([problem("MAX_PODS")]))).unwrap();
        assert_eq!((anew.observed_generation, nodes(&anew)), (2, vec![("MAX_PODS", 1)]));
    }
}
