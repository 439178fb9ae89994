//! A node is given back to Amazon's VPC CNI under running pods.
//!
//! Who asks for it leaves a mark ([`mark`]). A daemon that sees it ends all that it does, gives the node back ([`steps`]) and
//! waits ([`waiting`]), as long as the mark is there; where no daemon runs, the command does the same ([`command`]). What is
//! the other system's stands before anything of ours goes, and its state file, without which its daemon refuses the node, is
//! written last. Each step finds what an earlier run has left of it.

mod chains;
pub mod command;
mod configuration;
mod egress;
pub mod mark;
mod steps;
pub mod waiting;

/// Who hears of each change.
type Say<'a> = &'a (dyn Fn(&str) + Send + Sync);
