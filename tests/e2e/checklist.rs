//! Which lines of docs/cni-checklist.md a test proves: a test names them in a comment above it, `// D62 D63`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

struct Line {
    kind: String,
    what: String,
    reason: String,
    tests: Vec<String>,
}

fn lines(text: &str) -> BTreeMap<u32, Line> {
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let id = cells.get(1)?.strip_prefix('D')?.parse().ok()?;
        let [kind, what, reason] = [2, 3, 4].map(|at| cells[at].to_owned());
        Some((id, Line { kind, what, reason, tests: Vec::new() }))
    };
    text.lines().filter_map(row).collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

/// The ids of a comment that contains nothing else.
fn ids(line: &str) -> Option<Vec<u32>> {
    let words = line.trim().strip_prefix("// ")?.split(' ');
    words.map(|word| word.strip_prefix('D')?.parse().ok()).collect()
}

/// Tests by id; a tag must be directly above a test.
fn tagged(text: &str, file: &str) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    let mut pending: Vec<u32> = Vec::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(ids) = ids(line) {
            pending.extend(ids);
        } else if let Some(name) =
            trimmed.trim_start_matches("async ").strip_prefix("fn ").filter(|_| !pending.is_empty())
        {
            let name = name.split('(').next().unwrap();
            found.extend(pending.drain(..).map(|id| (id, format!("{file} {name}"))));
        } else {
            let between = trimmed.starts_with("#[") || trimmed.starts_with("//") || pending.is_empty();
            assert!(between, "{file}: the ids {pending:?} are above no test");
        }
    }
    found
}

#[test]
fn the_checklist_is_covered() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut lines = lines(&fs::read_to_string(root.join("docs/cni-checklist.md")).unwrap());
    assert_eq!(lines.keys().copied().collect::<Vec<_>>(), (1..=110).collect::<Vec<_>>());
    let mut files = Vec::new();
    sources(root, &mut files);
    for path in files {
        let file = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        for (id, test) in tagged(&fs::read_to_string(&path).unwrap(), &file) {
            lines.get_mut(&id).unwrap_or_else(|| panic!("{test} names D{id}, which is no line")).tests.push(test);
        }
    }
    let of_kind = |kind: &str, proven: bool| {
        lines.values().filter(|line| line.kind == kind && line.tests.is_empty() != proven).count()
    };
    for kind in ["M", "S", "C", "O"] {
        println!("{kind}: {} lines with a test, {} without", of_kind(kind, true), of_kind(kind, false));
    }
    for (id, line) in lines.iter().filter(|(_, line)| line.tests.is_empty()) {
        let reason = if line.reason.is_empty() { "no reason given" } else { &line.reason };
        println!("without a test: D{id} [{}] {}: {reason}", line.kind, line.what);
    }
    let open: Vec<u32> = lines
        .iter()
        .filter(|(_, line)| line.kind != "O" && line.tests.is_empty() && line.reason.is_empty())
        .map(|(id, _)| *id)
        .collect();
    assert!(open.is_empty(), "neither test nor reason: {open:?}");
}

#[test]
fn tags_belong_to_the_test_below_them() {
    let text = "// D1 D2\n#[test]\nfn a() {}\n// a comment about D3\nfn b() {}\n";
    let found = tagged(text, "x.rs");
    assert_eq!(found, [(1, "x.rs a".to_owned()), (2, "x.rs a".to_owned())]);
}
