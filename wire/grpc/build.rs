//! Generates messages, clients and servers from the proto files, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/attestation.proto", "proto/reference.proto", "proto/plugin.proto"];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
