//! A real load balancer, haproxy, that hands requests to Trustees in turn.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::{Daemon, Trustee};

/// A running load balancer without any stickiness: each request goes to the next Trustee by a connection of its own, so
/// that a crash cuts what was being answered and nothing else.
pub struct Balancer {
    port: u16,
    _server: Daemon,
}

impl Balancer {
    pub(crate) fn start(configuration: &Path, trustees: &[Trustee]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut text = format!(
            "global\n  log stdout format raw local0\ndefaults\n  mode http\n  log global\n  timeout connect 2s\n  timeout client 30s\n  \
             timeout server 30s\n  option redispatch 1\n  option http-server-close\n  retries 6\n  retry-on conn-failure\nfrontend front\n  \
             bind 127.0.0.1:{port}\n  default_backend trustees\nbackend trustees\n  balance roundrobin\n  \
             option httpchk GET /readyz\n  default-server check inter 100ms fastinter 50ms downinter 50ms fall 1 rise 1 \
             init-addr none\n"
        );
        for (number, trustee) in trustees.iter().enumerate() {
            let _ = writeln!(text, "  server trustee{number} 127.0.0.1:{}", trustee.port());
        }
        fs::write(configuration, text).unwrap();
        let server = Daemon::start(Command::new("haproxy").arg("-db").arg("-V").arg("-f").arg(configuration));
        let _ = server.try_wait_for("Loading success", Duration::from_secs(10));
        Self { port, _server: server }
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}
