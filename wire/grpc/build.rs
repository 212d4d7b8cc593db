//! Generates messages, clients and servers from `proto/` and from what is served over ttrpc as well, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed={TTRPC}");
    let own = ["attestation", "reference", "plugin"].map(|name| format!("proto/{name}.proto"));
    // One text for both protocols, so that they can't differ.
    let shared =
        ["attestation_agent", "confidential_data_hub", "key_provider"].map(|name| format!("{TTRPC}/{name}.proto"));
    let descriptors = protox::compile(own.iter().chain(&shared), ["proto", TTRPC])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}

const TTRPC: &str = "../ttrpc/proto";
