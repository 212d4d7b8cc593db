//! The gRPC services of attestation service, reference value provider and plugins, generated from `proto/`.

#![forbid(unsafe_code)]

/// Package `attestation`: evidence against a token.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod attestation {
    tonic::include_proto!("attestation");
}

/// Package `reference`: reference values.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod reference {
    tonic::include_proto!("reference");
}

/// Package `kbs.plugin.v1`: plugins of a key broker.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod plugin {
    tonic::include_proto!("kbs.plugin.v1");
}
