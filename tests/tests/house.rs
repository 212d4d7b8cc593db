//! The invariants of ARCHITECTURE.md, read from the manifests and the sources.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

#[test]
fn trust_domains_meet_in_wire_only() {
    let metadata = metadata();
    for package in metadata.workspace_packages() {
        let own = domain(package.manifest_path.as_std_path());
        // Tests may start what the laboratory owns.
        let linked = package.dependencies.iter().filter(|it| it.kind != DependencyKind::Development);
        for dependency in linked.filter_map(|dependency| dependency.path.as_ref()) {
            let other = domain(dependency.as_std_path());
            let allowed = other == own || other == "wire" || !DOMAINS.contains(&own.as_str());
            assert!(allowed, "{} ({own}) depends on {dependency} ({other})", package.name);
            assert!(own != "wire" || other == "wire", "{} leaves wire/", package.name);
        }
    }
}

#[test]
fn nothing_under_wire_opens_a_file_or_a_socket() {
    for (path, text) in sources("wire") {
        // Tests may read evidence from outside of the project.
        if path.file_name().is_some_and(|name| name == "build.rs" || name == "tests.rs") {
            continue;
        }
        let code = without_tests(&text);
        for word in ["std::fs", "std::net", "std::process", "std::os::unix::net", "tokio::"] {
            assert!(!code.contains(word), "{} uses {word}", path.display());
        }
    }
}

#[test]
fn the_guest_links_neither_openssl_nor_a_second_crypto_library() {
    let metadata = metadata();
    let guestd = metadata.workspace_packages().into_iter().find(|package| package.name.as_str() == "guestd").unwrap();
    for package in reachable(&metadata, &guestd.id) {
        let name = metadata[&package].name.as_str();
        let banned = ["openssl", "openssl-sys", "native-tls", "libseccomp", "systemd"];
        assert!(!banned.contains(&name), "guestd depends on {name}");
    }
}

#[test]
fn unsafe_code_is_forbidden_where_no_module_exists_for_it() {
    for package in metadata().workspace_packages() {
        for target in &package.targets {
            let library_or_program = target.is_lib() || target.is_bin();
            if !library_or_program {
                continue;
            }
            let root = fs::read_to_string(&target.src_path).unwrap();
            let says = root.contains("#![forbid(unsafe_code)]") || root.contains("#![deny(unsafe_code)]");
            assert!(says, "{} does not say what it does about unsafe code", target.src_path);
        }
    }
}

#[test]
fn every_file_opens_with_its_purpose() {
    let mut folders: Vec<PathBuf> = DOMAINS.iter().map(PathBuf::from).collect();
    folders.extend(["wire", "cli", "xtask", "tests"].map(PathBuf::from));
    for folder in folders {
        for (path, text) in sources(folder.to_str().unwrap()) {
            assert!(text.starts_with("//! "), "{} does not say what it is for", path.display());
            let name = path.file_stem().unwrap().to_str().unwrap();
            assert!(!["utils", "common", "helpers", "misc"].contains(&name), "{} has no name", path.display());
            assert!(text.lines().count() <= LONGEST_FILE, "{} is too long", path.display());
        }
    }
}

/// A file's text up to the test module that ends it. A module that anything follows counts as code.
fn without_tests(text: &str) -> &str {
    let starts = ["\n#[cfg(test)]\nmod tests {\n", "\n#[cfg(test)]\npub(crate) mod tests {\n"];
    let start = starts.iter().find_map(|start| text.find(start));
    let is_last = |start: &usize| text[*start..].find("\n}\n").is_some_and(|end| start + end + 3 == text.len());
    &text[..start.filter(is_last).unwrap_or(text.len())]
}

#[test]
fn only_a_test_module_at_the_end_is_left_out() {
    let tests = "\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
    assert_eq!(without_tests(&format!("code{tests}")), "code");
    for whole in [format!("code{tests}use std::fs;\n"), "#[cfg(test)]\nmod tests;\nuse std::fs;\n".to_owned()] {
        assert_eq!(without_tests(&whole), whole);
    }
}

fn metadata() -> Metadata {
    MetadataCommand::new().manifest_path(root().join("Cargo.toml")).exec().unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// The first folder of a path in the project.
fn domain(path: &Path) -> String {
    let inside = path.strip_prefix(root()).unwrap();
    inside.components().next().unwrap().as_os_str().to_str().unwrap().to_owned()
}

fn reachable(metadata: &Metadata, from: &PackageId) -> BTreeSet<PackageId> {
    let nodes: HashMap<_, _> =
        metadata.resolve.as_ref().unwrap().nodes.iter().map(|node| (node.id.clone(), node)).collect();
    let (mut seen, mut open) = (BTreeSet::new(), vec![from.clone()]);
    while let Some(package) = open.pop() {
        if seen.insert(package.clone()) {
            // What only tests and build scripts need does not get into the guest.
            let linked = nodes[&package].deps.iter().filter(|dependency| {
                dependency.dep_kinds.iter().any(|kind| kind.kind == cargo_metadata::DependencyKind::Normal)
            });
            open.extend(linked.map(|dependency| dependency.pkg.clone()));
        }
    }
    seen
}

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let (mut found, mut open) = (Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && entry.file_name() != "target" {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found
}

const DOMAINS: [&str; 4] = ["guest", "host", "trustee", "cluster"];
/// About 400 lines of code, and the tests under it.
const LONGEST_FILE: usize = 700;
