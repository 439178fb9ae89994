//! What the daemon serves: plugins on `cni.sock`, operators on `debug.sock`, Prometheus on `/metrics`.

pub mod cni;
pub mod debug;
pub mod metrics;
pub mod packets;
