//! Compiles the contract. `protox` is a protobuf compiler in Rust, so no `protoc` is needed to build.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const PROTOS: [&str; 3] = ["proto/enid/v1/cni.proto", "proto/enid/v1/debug.proto", "proto/enid/v1/admin.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out_dir.join("enid.v1.bin"), descriptors.encode_to_vec())?;
    // Services, and with them the runtime, only for who wants them.
    let grpc = env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(grpc)
        .build_server(grpc)
        .type_attribute(".", "#[cfg_attr(feature = \"serde\", derive(serde::Serialize))]")
        .compile_fds(descriptors)?;
    Ok(())
}
