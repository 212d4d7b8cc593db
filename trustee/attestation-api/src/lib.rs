//! The attestation service and the reference value provider over gRPC and REST.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]
