//! HTTP clients for a guest: given roots, given proxies, no way into the guest itself, and nothing without a deadline.

use std::net::IpAddr;
use std::time::Duration;

use reqwest::redirect::{Action, Attempt, Policy};
use reqwest::{Client, NoProxy, Proxy, Url};
use rustls::ClientConfig;

use super::error::causes;
use super::tls;
use crate::config::{ImageConfig, ProxyConfig};
use crate::error::Error;
use crate::node_cache::NodeCache;

/// The clients that all pulls share.
pub(crate) struct Clients {
    /// For registries that must prove who they are.
    pub(super) verified: Client,
    /// For registries that the configuration calls insecure.
    pub(super) unverified: Client,
    /// Like the first two, for requests whose body is a secret: they must reach the one they are meant for.
    pub(super) straight: (Client, Client),
    pub(super) patience: Patience,
    pub(super) node: Option<NodeCache>,
}

/// How long a registry may keep the guest waiting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) connect: Duration,
    /// The longest silence on an open connection.
    pub(crate) stall: Duration,
    /// The longest wait for each MiB of a body, or for what is less.
    pub(crate) progress: Duration,
    /// The longest wait for an answer of the node's cache, and for each MiB of it.
    pub(crate) node: Duration,
    /// The pause after the first failure; each further one is four times as long.
    pub(crate) backoff: Duration,
    /// The longest pause that a registry may ask for.
    pub(crate) retry_after: Duration,
}

impl Clients {
    /// # Errors
    /// [`Error::Config`] if a certificate or a proxy can't be used.
    pub(crate) fn new(config: &ImageConfig, patience: Patience) -> Result<Self, Error> {
        let (verified, unverified) = (tls::verified(&config.extra_root_certificates)?, tls::unverified()?);
        let proxies = proxies(&config.image_pull_proxy)?;
        let client = |tls: &ClientConfig, https_only, policy| {
            let mut builder = Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .https_only(https_only)
                .no_proxy()
                .connect_timeout(patience.connect)
                .read_timeout(patience.stall)
                .redirect(policy)
                .user_agent(concat!("cocoon/", env!("CARGO_PKG_VERSION")));
            for proxy in &proxies {
                builder = builder.proxy(proxy.clone());
            }
            builder
                .build()
                .map_err(|e| Error::Config { cause: format!("the HTTP client can't be built: {}", causes(&e)) })
        };
        Ok(Self {
            straight: (client(&verified, true, Policy::none())?, client(&unverified, false, Policy::none())?),
            verified: client(&verified, true, Policy::custom(redirect))?,
            unverified: client(&unverified, false, Policy::custom(redirect))?,
            patience,
            node: config.node_cache.clone().map(|address| NodeCache::new(address, patience.node)),
        })
    }
}

impl Patience {
    /// The pause after so many failures, or what the registry asked for if that is longer.
    pub(super) fn pause(&self, failures: u32, asked: Option<Duration>) -> Duration {
        let own = self.backoff * 4_u32.pow(failures.saturating_sub(1).min(4));
        own.max(asked.unwrap_or_default().min(self.retry_after))
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            progress: Duration::from_secs(60),
            node: Duration::from_secs(5),
            backoff: Duration::from_millis(200),
            retry_after: Duration::from_secs(60),
        }
    }
}

fn proxies(config: &ProxyConfig) -> Result<Vec<Proxy>, Error> {
    let except = NoProxy::from_string(&exceptions(config.no_proxy.as_deref().unwrap_or_default()));
    let mut proxies = Vec::new();
    for (key, url) in [("https_proxy", &config.https_proxy), ("http_proxy", &config.http_proxy)] {
        let Some(url) = url.as_deref().filter(|url| !url.is_empty()) else { continue };
        // The URL may hold a password.
        let refused = |cause: &str| Error::Config { cause: format!("image_pull_proxy.{key} {cause}") };
        let text = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let parsed = Url::parse(&text).map_err(|_| refused("is not a URL such as http://proxy:3128"))?;
        if !matches!(parsed.scheme(), "http" | "https") || !parsed.has_host() {
            return Err(refused("does not begin with http:// or https:// and a host"));
        }
        let proxy = if key == "https_proxy" { Proxy::https(parsed) } else { Proxy::http(parsed) };
        proxies.push(proxy.map_err(|_| refused("can't be used"))?.no_proxy(except.clone()));
    }
    Ok(proxies)
}

/// The list in the form that the client knows: without ports, and with `.host` for `*.host`.
fn exceptions(list: &str) -> String {
    let plain = |entry: &str| {
        let entry = entry.trim();
        let host = match entry.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && (!host.contains(':')) => host,
            Some((host, _)) if host.starts_with('[') && host.ends_with(']') => host,
            _ => entry,
        };
        let host = host.trim_matches(['[', ']']);
        host.strip_prefix("*.").map_or_else(|| host.to_owned(), |domain| format!(".{domain}"))
    };
    list.split([',', ' ']).filter(|entry| !entry.is_empty()).map(plain).collect::<Vec<_>>().join(",")
}

/// Follows redirects, but not into the guest: there, a secret could be read as a manifest or a token.
fn redirect(attempt: Attempt<'_>) -> Action {
    let inside = is_inside(attempt.url()) && !attempt.previous().first().is_some_and(is_inside);
    match attempt.previous().len() {
        _ if inside => attempt.error("the redirect leads into the guest"),
        0..=MAX_REDIRECTS => attempt.follow(),
        _ => attempt.error("there are too many redirects"),
    }
}

/// Whether a URL's host is this machine, as far as its name tells.
pub(super) fn is_inside(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_end_matches('.');
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>().map(|ip| ip.to_canonical());
    host == "localhost" || host.ends_with(".localhost") || ip.is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified())
}

const MAX_REDIRECTS: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_inside_the_guest_is_known_by_its_name() {
        for (url, inside) in [
            ("http://127.0.0.1:8006/cdh/resource/default/key/1", true),
            ("http://127.1/", true),
            ("http://0.0.0.0/", true),
            ("http://LOCALHOST./", true),
            ("http://a.localhost/", true),
            ("http://[::1]/", true),
            ("http://[::ffff:127.0.0.1]/", true),
            ("https://registry.example/", false),
            ("https://10.0.2.2:5000/", false),
            ("https://[fd00::1]/", false),
        ] {
            assert_eq!(is_inside(&Url::parse(url).unwrap()), inside, "{url}");
        }
    }

    #[test]
    fn exceptions_from_the_proxy_are_written_in_many_ways() {
        for (list, expected) in [
            ("", ""),
            ("*", "*"),
            ("localhost, .svc,*.cluster.local", "localhost,.svc,.cluster.local"),
            ("10.0.0.0/8 registry:5000", "10.0.0.0/8,registry"),
            ("[::1]:5000,fd00::/8,::1", "::1,fd00::/8,::1"),
        ] {
            assert_eq!(exceptions(list), expected);
        }
    }

    #[test]
    fn a_proxy_that_is_none_is_refused_without_its_password() {
        for url in ["ftp://me:secret@proxy", "http://me:secret@", "http://me:secret@proxy:port"] {
            let config = ProxyConfig { https_proxy: Some(url.to_owned()), ..Default::default() };
            let error = proxies(&config).unwrap_err().to_string();
            assert!(error.contains("image_pull_proxy.https_proxy") && !error.contains("secret"), "{error}");
        }
        let config = ProxyConfig {
            https_proxy: Some("proxy:3128".to_owned()),
            http_proxy: Some(String::new()),
            no_proxy: Some("x".to_owned()),
        };
        assert_eq!(proxies(&config).unwrap().len(), 1);
    }

    #[test]
    fn a_registry_may_ask_for_a_pause_but_not_for_any() {
        let patience = Patience { backoff: Duration::from_millis(200), ..Default::default() };
        let asked = |seconds| patience.pause(1, Some(Duration::from_secs(seconds)));
        assert_eq!((asked(0), asked(7), asked(7000)), (patience.backoff, Duration::from_secs(7), patience.retry_after));
        assert_eq!(patience.pause(3, None), patience.backoff * 16);
    }
}
