//! What the daemon serves: plugins on `cni.sock`, operators on `debug.sock`, Prometheus on `/metrics`, the kubelet's
//! probes on `/healthz` and `/readyz`.

pub mod admin;
pub mod cni;
mod contract;
pub mod debug;
mod explain;
mod gc;
pub mod health;
pub mod introspection;
mod listen;
pub mod metrics;
pub mod packets;
