//! `[http_server]`: where clients connect, and over which TLS.

use std::path::PathBuf;

use http_server::TlsFiles;
use http_server::profile::{Base, TlsProfile};

use super::section::{choice, sections};

sections! {
    /// Where clients connect.
    pub struct HttpServer {
        /// Addresses to listen on.
        pub sockets: Vec<String> = vec!["127.0.0.1:8080".to_owned()],
        /// Serve plain HTTP, which only a proxy in front may do without harm. Otherwise certificate and private_key
        /// are needed.
        pub insecure_http: bool,
        /// File with the certificate chain in PEM, leaf first. It is read again when it changes.
        pub certificate: Option<PathBuf>,
        /// File with the certificate's private key in PEM. It is read again when it changes.
        pub private_key: Option<PathBuf>,
        /// File with the authorities that clients' certificates come from, in PEM. Without it, clients are asked for
        /// none. It is read again when it changes.
        pub client_ca: Option<PathBuf>,
        /// Whether a client that shows no certificate is turned away, where client_ca is set.
        pub require_client_certificate: bool = true,
        /// Show /metrics to administrators alone.
        pub require_admin_auth_metrics: bool,
        /// Largest body of a request in MiB, 1 to 64.
        pub payload_request_size: u16 = 2,
        /// Threads that serve, 1 to 1024. Without it, one for each processor.
        pub worker_count: Option<u16>,
        /// `old` and `intermediate` speak TLS 1.2 and 1.3, `modern` 1.3 alone; `custom` goes with the keys below.
        /// Nothing older than 1.2 is spoken.
        pub tls_profile: Profile,
        /// `1.2` or `1.3`. Without it, as the profile says.
        pub tls_min_version: Option<String>,
        /// `1.2` or `1.3`. Without it, `1.3`.
        pub tls_max_version: Option<String>,
        /// Cipher suites, most wanted first, separated by colons, in the names of OpenSSL or IANA. What is not offered
        /// is left out. Without it, all those of TLS 1.3 and those of 1.2 with ECDHE and AEAD.
        pub tls_ciphers: Option<String>,
        /// Key exchanges, most wanted first, separated by colons: X25519MLKEM768, SecP256r1MLKEM768, X25519,
        /// secp256r1, secp384r1. What is not offered is left out. Without it, X25519MLKEM768 and the classical ones.
        pub tls_groups: Option<String>,
    }
}

choice! {
    /// A named choice of TLS versions and algorithms.
    pub enum Profile {
        /// What `intermediate` is.
        #[serde(rename = "old")]
        Old,
        /// TLS 1.2 and 1.3.
        #[default]
        #[serde(rename = "intermediate")]
        Intermediate,
        /// TLS 1.3.
        #[serde(rename = "modern")]
        Modern,
        /// As the other keys say.
        #[serde(rename = "custom")]
        Custom,
    }
}

impl HttpServer {
    /// The files of the server's identity; none means plain HTTP.
    pub fn tls_files(&self) -> Option<TlsFiles> {
        Some(TlsFiles {
            certificate: self.certificate.clone()?,
            private_key: self.private_key.clone()?,
            client_ca: self.client_ca.clone(),
            require_client_certificate: self.require_client_certificate,
        })
    }

    /// The versions and algorithms of TLS.
    pub fn tls_profile(&self) -> TlsProfile {
        let base = match self.tls_profile {
            Profile::Old => Base::Old,
            Profile::Intermediate => Base::Intermediate,
            Profile::Modern => Base::Modern,
            Profile::Custom => Base::Custom,
        };
        TlsProfile {
            base,
            min_version: self.tls_min_version.clone(),
            max_version: self.tls_max_version.clone(),
            ciphers: self.tls_ciphers.clone(),
            groups: self.tls_groups.clone(),
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let refused = |text: &str| Err(format!("[http_server] {text}"));
        if self.sockets.is_empty() {
            return refused("sockets is empty");
        }
        let (certificate, key) = (self.certificate.is_some(), self.private_key.is_some());
        if !(self.insecure_http || certificate && key) {
            return refused("needs certificate and private_key, or insecure_http = true");
        }
        if self.insecure_http && (certificate || key || self.client_ca.is_some()) {
            return refused("has certificate, private_key or client_ca beside insecure_http = true: remove one");
        }
        if !(1..=64).contains(&self.payload_request_size) {
            return refused("payload_request_size must be 1 to 64");
        }
        if self.worker_count.is_some_and(|count| !(1..=1024).contains(&count)) {
            return refused("worker_count must be 1 to 1024");
        }
        Ok(())
    }
}
