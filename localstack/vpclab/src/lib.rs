//! A VPC on one machine: how the unmodified daemon and plugin meet AWS in tests and in the demo.
//!
//! The VPC, each node, the Internet and a peered network are namespaces. Each exists as long as its process 1
//! ([`namespaces`]) and has no name outside, so when the lab's process dies, by whatever signal, everything goes
//! with it but one state folder. EC2 is LocalStack or the
//! [`model`], inside the VPC; what it shows of ENIs becomes links,
//! ports and metadata ([`hotplug`]). The VPC drops and counts packets with a source that EC2 did not assign
//! to their ENI, so a wrong route or a missing SNAT is a lost packet and a number.

mod account;
mod backend;
mod config;
mod detached;
pub mod ec2;
mod fabric;
mod fabric6;
mod hotplug;
mod http;
mod imds;
mod lab;
mod localstack;
pub mod model;
pub mod namespaces;
mod nd;
mod nsenter;
mod port;
mod program;
pub mod serve;
mod state;
mod wait;

pub use backend::Backend;
pub use config::LabConfig;
pub use detached::{down, up};
pub use fabric::{Drops, INTERNET_SERVER, PEER_CLIENT, VPC_CIDR};
pub use fabric6::{INTERNET_SERVER_V6, PEER_CLIENT_V6, VPC_CIDR_V6};
pub use imds::{Faults, REQUESTS};
pub use lab::Lab;
pub use nsenter::output;
pub use program::{program, program_named};
pub use state::{CONTROL_PLANE, Node, State, check_name, folder, start_of};
pub use wait::{pause, wait_until};
