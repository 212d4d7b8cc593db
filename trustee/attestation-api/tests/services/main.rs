//! The services and their clients, over real connections.

#![allow(clippy::unwrap_used)]

mod grpc;
mod rest;
mod served;
mod tls;
