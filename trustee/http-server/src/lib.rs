//! Sockets, TLS and drain for every HTTP service of the Trustee.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]
