//! The model against LocalStack: the same calls, and every difference has a name.
//!
//! LocalStack is made by people who have not seen the model, so where both agree, a rule was not made up by
//! us alone. Where they differ, the list below names the one that is wrong and how we know. A difference that is not
//! listed fails the test, and so does a listed one that has gone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod differential {
    pub mod known;
    pub mod story;
}

use std::collections::BTreeMap;

use differential::{known::KNOWN, story};
use vpclab::{Backend, Lab, LabConfig};

fn run(ec2: Backend) -> BTreeMap<String, String> {
    let name = format!("diff-{}-{}", ec2.as_str(), std::process::id());
    let lab = Lab::up(&LabConfig { name, nodes: 1, ec2, ..LabConfig::default() }).unwrap();
    story::run(&lab)
}

#[test]
fn localstack_differs_where_we_know() {
    assert!(nix::unistd::geteuid().is_root(), "the lab needs root");
    let (model, localstack) = (run(Backend::Model), run(Backend::LocalStack));
    let names: Vec<&String> = model.keys().collect();
    assert_eq!(names, localstack.keys().collect::<Vec<_>>(), "both are asked the same");
    let mut wrong = String::new();
    for (name, ours) in &model {
        let theirs = &localstack[name];
        match KNOWN.iter().find(|known| known.at == name) {
            None if ours != theirs => {
                wrong += &format!("\nunknown: {name}\n  model       {ours}\n  LocalStack  {theirs}")
            }
            Some(known) if ours == theirs => {
                wrong += &format!("\nno longer: {name}: {}\n  both  {ours}", known.why);
            }
            _ => {}
        }
    }
    for known in KNOWN.iter().filter(|known| !model.contains_key(known.at)) {
        wrong += &format!("\nnobody asks: {}", known.at);
    }
    assert!(wrong.is_empty(), "{wrong}");
}
