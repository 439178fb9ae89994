//! A node that Amazon's VPC CNI has served is taken over under running pods.
//!
//! Its daemon has to be gone ([`wait`]). Then its file, the kernel and metadata are read ([`evidence`]), and decided is what
//! becomes of each pod ([`plan`]): one on which all of them agree is leased; where they disagree the kernel is believed that the
//! address is in use, and it is given to nobody. Before anything else of ours stands, leases and slots are in the store, and
//! the pods' links in our device groups ([`adopt`]): with our table, packets to a link of no group of ours are dropped. What is
//! the other system's goes when all of ours stands ([`retire`]). Each step finds what an earlier run has left of it.

pub mod adopt;
pub mod chains;
mod enis;
pub mod evidence;
pub mod file;
mod plan;
pub mod report;
pub mod retire;
pub mod wait;
