//! What end-to-end tests, the demo and the benchmark share: a lab whose nodes run the real daemon and the real
//! plugin, pods as namespaces, and traffic between them.

pub mod api_server;
pub mod call;
pub mod consistency;
pub mod kernel;
pub mod kube;
pub mod node;
pub mod peer;
pub mod pod;
mod programs;
pub mod runtime;
mod still;
pub mod traffic;
pub mod wire;

pub use call::Call;
pub use node::{Daemon, Place};
pub use pod::Pod;
pub use programs::{plugin, program};
pub use still::wait_until_still;
pub use vpclab::{Backend, Lab, LabConfig, wait_until};
