//! A real Kubernetes cluster on the nodes of a lab: EKS's networking on one machine.
//!
//! The control plane (etcd, API server, controller manager, scheduler) runs on an instance of its own in the VPC, as
//! EKS's does behind its ENIs. Each node of the lab runs containerd, kubelet and kube-proxy. All of it lives in the lab's
//! namespaces and ends with the lab; what remains is a folder ([`folder`]) and cgroups, which [`Cluster::down`]
//! removes.

mod charts;
mod cluster;
mod config;
mod control_plane;
mod families;
pub mod kubeconfig;
mod node;
mod parts;
mod pki;

pub use cluster::Cluster;
pub use config::{ClusterConfig, Cni, check_room, folder};
pub use control_plane::ControlPlane;
pub use families::Families;
pub use node::{
    Node, STATIC_PODS,
    boot::{boot, tell_boot_id},
};
pub use parts::Parts;
pub use pki::{Pki, Use};
