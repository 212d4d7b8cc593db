//! The gRPC services of attestation service, reference value provider and plugins, generated from `proto/`; and those of
//! the guest's attestation agent and data hub, from the same text as their ttrpc services.

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

/// Package `attestation_agent`: evidence, tokens and runtime measurements of a guest.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod attestation_agent {
    tonic::include_proto!("attestation_agent");
}

/// Package `api`: resources, sealed secrets, encrypted volumes and images of a guest.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod confidential_data_hub {
    tonic::include_proto!("api");
}

/// Package `keyprovider`: keys of encrypted image layers.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod key_provider {
    tonic::include_proto!("keyprovider");
}
