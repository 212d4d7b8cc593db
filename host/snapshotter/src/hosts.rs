//! Where the node has images from: containerd's `hosts.toml`, so that both ask the same registries.
//!
//! Source: containerd's documentation of registry hosts. Keys that only matter for pushes, and those for headers and client
//! certificates, are not looked at.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

/// One host that may have a registry's images.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Host {
    /// The API's base, such as `https://registry.example:5000/v2`.
    pub(crate) base: String,
    /// Host and port.
    pub(crate) name: String,
    /// Certificate authorities that are trusted beside the system's, in PEM.
    pub(crate) authorities: Vec<Vec<u8>>,
    /// Whether any certificate will do.
    pub(crate) skip_verify: bool,
}

/// The hosts to ask for a registry's images, in their order; the registry itself is the last.
///
/// # Errors
/// What is wrong with the registry's `hosts.toml`.
pub(crate) fn of_registry(folder: &Path, registry: &str) -> Result<Vec<Host>, String> {
    let Some((path, text)) = document(folder, registry)? else {
        return Ok(vec![Host::plain(registry)]);
    };
    let shown = |cause: String| format!("{}: {cause}", path.display());
    let Document { server, host: tables } = toml::from_str(&text).map_err(|e| shown(e.message().to_owned()))?;
    let mut tables: Vec<_> = tables.into_iter().collect();
    // They are asked in the order in which they are written.
    tables.sort_by_key(|(url, _)| url.span().start);
    let able = tables.into_iter().filter(|(_, table)| table.capabilities.iter().any(|it| it == "pull"));
    let mut hosts = Vec::new();
    for (url, table) in able {
        let host = Host::new(url.get_ref(), &table, path.parent().unwrap_or(folder)).map_err(shown)?;
        hosts.push(host);
    }
    let last = match server.filter(|server| !server.is_empty()) {
        Some(server) => Host::new(&server, &Table::default(), folder).map_err(shown)?,
        None => Host::plain(registry),
    };
    if !hosts.iter().any(|host| host.base == last.base) {
        hosts.push(last);
    }
    Ok(hosts)
}

impl Host {
    /// A registry that nothing is written about. containerd takes those on this machine for ones without TLS.
    fn plain(registry: &str) -> Self {
        let name = host_of(registry);
        let scheme = if is_local(name) { "http" } else { "https" };
        let base = format!("{scheme}://{name}/v2");
        Self { base, name: name.to_owned(), authorities: Vec::new(), skip_verify: false }
    }

    /// Whether this is the registry itself and no mirror.
    pub(crate) fn is(&self, registry: &str) -> bool {
        self.name == host_of(registry)
    }

    fn new(url: &str, table: &Table, folder: &Path) -> Result<Self, String> {
        let url = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        let (_, rest) = url.split_once("://").unwrap_or_default();
        let name = rest.split('/').next().unwrap_or_default().to_owned();
        if !(url.starts_with("http://") || url.starts_with("https://")) || name.is_empty() || name.contains('@') {
            return Err(format!("{url:?} is not a host such as https://mirror.example"));
        }
        let trimmed = url.trim_end_matches('/');
        let base = match table.override_path || trimmed.ends_with("/v2") {
            true => trimmed.to_owned(),
            false => format!("{trimmed}/v2"),
        };
        let read = |file: &String| fs::read(folder.join(file)).map_err(|e| format!("ca {file:?}: {e}"));
        let authorities = table.ca.files().iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { base, name, authorities, skip_verify: table.skip_verify })
    }
}

/// Whether a host is this machine, as far as its name tells.
fn is_local(name: &str) -> bool {
    let host = name.rsplit_once(':').map_or(name, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// Docker's hub is elsewhere than its name says.
fn host_of(registry: &str) -> &str {
    match registry {
        "docker.io" => "registry-1.docker.io",
        other => other,
    }
}

/// The registry's own document, or the one for all that have none.
fn document(folder: &Path, registry: &str) -> Result<Option<(PathBuf, String)>, String> {
    // A name that leads elsewhere is none of a registry.
    if registry.contains('/') || registry.starts_with('.') {
        return Ok(None);
    }
    let mut names = vec![registry.to_owned()];
    if let Some((host, port)) = registry.rsplit_once(':') {
        // Not every file system has colons.
        names.push(format!("{host}_{port}_"));
    }
    names.push("_default".to_owned());
    for name in names {
        let path = folder.join(name).join("hosts.toml");
        match fs::read_to_string(&path) {
            Ok(text) => return Ok(Some((path, text))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(format!("{}: {e}", path.display())),
        }
    }
    Ok(None)
}

#[derive(Deserialize)]
struct Document {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<Spanned<String>, Table>,
}

#[derive(Deserialize)]
#[serde(default)]
struct Table {
    capabilities: Vec<String>,
    ca: Files,
    skip_verify: bool,
    override_path: bool,
}

impl Default for Table {
    fn default() -> Self {
        Self { capabilities: vec!["pull".to_owned()], ca: Files::None, skip_verify: false, override_path: false }
    }
}

#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Files {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

impl Files {
    fn files(&self) -> &[String] {
        match self {
            Self::None => &[],
            Self::One(file) => std::slice::from_ref(file),
            Self::Many(files) => files,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, text: &str) {
        fs::create_dir_all(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("hosts.toml"), text).unwrap();
    }

    #[test]
    fn hosts_are_asked_in_the_order_in_which_they_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        write(path, "plain.example", "server = \"https://plain.example\"\n");
        write(
            path,
            "r.example:5000",
            "server = \"https://own.example\"\n[host.\"https://z.example\"]\ncapabilities = [\"pull\"]\n\
             [host.\"http://a.example/x\"]\nskip_verify = true\n[host.\"https://push.example\"]\ncapabilities = [\"push\"]\n\
             [host.\"https://o.example/proxy/\"]\noverride_path = true\nca = \"ca.pem\"\n",
        );
        fs::write(path.join("r.example:5000/ca.pem"), "PEM").unwrap();
        write(path, "port.example_5000_", "[host.\"https://m.example\"]\nca = []\n");
        for (registry, expected) in [
            ("plain.example", &["https://plain.example/v2"][..]),
            (
                "r.example:5000",
                &["https://z.example/v2", "http://a.example/x/v2", "https://o.example/proxy", "https://own.example/v2"],
            ),
            ("port.example:5000", &["https://m.example/v2", "https://port.example:5000/v2"]),
            ("unknown.example", &["https://unknown.example/v2"]),
            ("docker.io", &["https://registry-1.docker.io/v2"]),
            ("127.0.0.1:5000", &["http://127.0.0.1:5000/v2"]),
            ("[::1]:5000", &["http://[::1]:5000/v2"]),
            ("localhost", &["http://localhost/v2"]),
            ("localhost.example", &["https://localhost.example/v2"]),
            ("../r.example:5000", &["https://../r.example:5000/v2"]),
        ] {
            let hosts = of_registry(path, registry).unwrap();
            assert_eq!(hosts.iter().map(|host| host.base.as_str()).collect::<Vec<_>>(), expected, "{registry}");
        }
        let hosts = of_registry(path, "r.example:5000").unwrap();
        assert!(hosts[1].skip_verify && hosts[2].authorities == [b"PEM".to_vec()] && hosts[1].name == "a.example");

        write(path, "_default", "[host.\"https://all.example\"]\n");
        assert_eq!(of_registry(path, "unknown.example").unwrap()[0].base, "https://all.example/v2");
    }

    #[test]
    fn a_document_that_can_not_be_followed_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for (text, expected) in [
            ("server = 1", "invalid type"),
            ("[host.\"ftp://x\"]", "is not a host"),
            ("[host.\"https://me:pw@x\"]", "is not a host"),
            ("[host.\"https://x\"]\nca = \"none.pem\"", "none.pem"),
        ] {
            write(folder.path(), "r.example", text);
            let error = of_registry(folder.path(), "r.example").unwrap_err();
            assert!(error.contains(expected) && error.contains("r.example/hosts.toml"), "{text} gave {error}");
        }
    }
}
