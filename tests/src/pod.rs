//! Pods: their initdata, and `cocoon run`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::{Daemon, Lab, Registry, Trustee, run};

/// The files of an initdata document.
pub struct InitDataFiles {
    /// `policy.rego`.
    pub policy: String,
    /// `aa.toml`.
    pub aa: String,
    /// `cdh.toml`.
    pub cdh: String,
}

impl InitDataFiles {
    /// Configuration for a guest that asks `trustee`, pulls from `registry` and obeys `policy`.
    pub fn new(policy: String, trustee: &Trustee, registry: &Registry) -> Self {
        Self { policy, aa: trustee.aa_toml(), cdh: cdh_toml(registry) }
    }

    /// The same for a guest that asks nobody for keys.
    pub fn without_trustee(policy: String, registry: &Registry) -> Self {
        Self { policy, aa: String::new(), cdh: cdh_toml(registry) }
    }

    /// The document as a pod's annotation `io.katacontainers.config.hypervisor.cc_init_data` carries it.
    ///
    /// # Panics
    /// If it can't be built.
    pub fn annotation(&self, lab: &Lab, name: &str) -> String {
        let document = std::fs::read(self.build(lab, name).0).unwrap();
        let mut compressed = GzEncoder::new(Vec::new(), Compression::best());
        compressed.write_all(&document).unwrap();
        STANDARD.encode(compressed.finish().unwrap())
    }

    /// Builds the document with `cocoon initdata build`: its path and its digest in hexadecimal.
    ///
    /// # Panics
    /// If it can't be built.
    pub fn build(&self, lab: &Lab, name: &str) -> (PathBuf, String) {
        let files = [("policy", &self.policy), ("aa", &self.aa), ("cdh", &self.cdh)];
        let output = lab.path().join(format!("{name}.toml"));
        let mut arguments = vec!["initdata".to_owned(), "build".to_owned()];
        for (kind, text) in files {
            arguments.push(format!("--{kind}"));
            arguments.push(lab.file(&format!("{name}-{kind}"), text).display().to_string());
        }
        arguments.push("--output".to_owned());
        arguments.push(output.display().to_string());
        let digest = run(Lab::program("cocoon"), &arguments).trim().to_owned();
        (output, digest)
    }
}

fn cdh_toml(registry: &Registry) -> String {
    let mut image = toml::Table::new();
    image.insert("extra_root_certificates".to_owned(), vec![registry.certificate()].into());
    toml::Table::from_iter([("image".to_owned(), image.into())]).to_string()
}

/// The published policy under which an image's output may be read and chosen commands may run, for one image.
///
/// # Panics
/// If the example is not there.
pub fn agent_policy(image: &str) -> String {
    example_policy("exec-and-logs", image)
}

/// One of the published example policies, for one image.
///
/// # Panics
/// If there is no such example.
pub fn example_policy(name: &str, image: &str) -> String {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/policies").join(name).with_extension("rego");
    let (_, digest) = image.split_once('@').unwrap();
    std::fs::read_to_string(example).unwrap().replace("sha256:REPLACE_WITH_THE_DIGEST_OF_YOUR_IMAGE", digest)
}

/// A pod that `cocoon run` runs.
pub struct Pod {
    name: String,
    process: Daemon,
}

impl Pod {
    /// Starts a pod with an image.
    pub fn run(name: &str, image: &str, initdata: Option<&Path>, more: &[&str]) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let mut command = Command::new(Lab::program("cocoon"));
        // The log then holds the guest's console.
        command.env("RUST_LOG", "console=debug");
        command.arg("run").arg("--timeline").arg("--name").arg(&name).arg("--guest-image").arg(Lab::guest_image());
        if let Some(initdata) = initdata {
            command.arg("--initdata").arg(initdata);
        }
        command.args(more).arg(image);
        Self { name, process: Daemon::start(&mut command) }
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The running program.
    pub fn process(&self) -> &Daemon {
        &self.process
    }

    /// The running program, to be waited for.
    pub fn into_process(self) -> Daemon {
        self.process
    }

    /// The pod's folder on the host.
    ///
    /// # Panics
    /// If the name is not one of a sandbox.
    pub fn folder(&self) -> PathBuf {
        sandbox::Directory::path_of(&sandbox::SandboxName::parse(&self.name).unwrap())
    }
}
