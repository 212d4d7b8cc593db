//! Whether a node can run confidential pods, found out by trying, each finding with its cause and the next step.

use std::fmt;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use guest_image::GuestImage;
use hypervisor::acceleration::{Preference, probe};
use hypervisor::remote::Adaptor;
use serde::Serialize;

use crate::class::Class;
use crate::containerd::Containerd;
use crate::node::Node;
use crate::root::{SNAPSHOTTER, UNIT};
use crate::versions::Versions;

/// What was found about one thing that pods need.
#[derive(Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The thing.
    pub name: String,
    /// Whether it is as it should be.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub next: Option<String>,
}

/// Whether something is as it should be.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is.
    Good,
    /// Pods run without it, slower or not all of them.
    Warning,
    /// Pods don't run.
    Failure,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Good => "good",
            Self::Warning => "warning",
            Self::Failure => "FAILURE",
        })
    }
}

impl Node {
    /// Looks at everything that a pod needs. Takes up to 2 s, since a guest that hangs has to be waited for.
    pub async fn check(&self) -> Vec<Finding> {
        let versions = Versions(&self.root);
        let classes = versions.current().map(|current| versions.classes(&current)).unwrap_or_default();
        let needs_kvm = classes.iter().any(|class| class.switch().is_some());
        let mut findings = vec![self.installation(), qemu(&classes), kvm(needs_kvm).await, self.vsock(), self.tap()];
        findings.extend(classes.iter().filter_map(|class| self.hardware(class)));
        findings.extend(self.adaptor().await);
        findings.extend([self.guest_image(), self.containerd(), self.snapshotter()]);
        findings
    }

    fn installation(&self) -> Finding {
        let name = "installation";
        match self.status() {
            Err(error) => Finding::of(Verdict::Failure, name, &error, "put that file right"),
            Ok(status) => match (status.interrupted, status.current) {
                (Some(operation), _) => Finding::failure(
                    name,
                    format!("\"{operation}\" was interrupted"),
                    "repeat it: the next operation takes back what was done",
                ),
                (None, None) => {
                    Finding::failure(name, "no version is installed".to_owned(), "run \"cocoon node install\"")
                }
                (None, Some(current)) => Finding::good(name, current),
            },
        }
    }

    fn vsock(&self) -> Finding {
        let found = match self.root.at("/dev/vhost-vsock").exists() {
            true => "the kernel's vhost-vsock",
            false => "the kernel has no vhost-vsock; the sandbox's own back end is used",
        };
        Finding::good("vsock", found.to_owned())
    }

    fn tap(&self) -> Finding {
        let path = self.root.at("/dev/net/tun");
        match File::options().read(true).write(true).open(&path) {
            Ok(_) => Finding::good("network", "/dev/net/tun can be opened".to_owned()),
            Err(error) => Finding::failure(
                "network",
                format!("/dev/net/tun: {error}"),
                "run this as root; if it is so already, \"modprobe tun\"",
            ),
        }
    }

    fn hardware(&self, class: &Class) -> Option<Finding> {
        let switch = class.switch()?;
        let value = std::fs::read_to_string(self.root.at(switch));
        let finding = match value.as_deref().map(str::trim) {
            Ok("Y" | "1") => Finding::good(class.name, format!("{switch} says that it is on")),
            found => Finding::warning(
                class.name,
                found.map_or_else(|error| format!("{switch}: {error}"), |value| format!("{switch} is {value:?}")),
                "run pods of this class on nodes with the TEE, switched on in firmware and kernel",
            ),
        };
        Some(finding)
    }

    /// What makes machines elsewhere, if it is on this node.
    async fn adaptor(&self) -> Option<Finding> {
        let socket = self.root.at(ADAPTOR);
        socket.exists().then_some(())?;
        Some(match (Adaptor { socket, limit: Duration::ZERO }).version().await {
            Ok(version) => Finding::good("adaptor", format!("it answers on {ADAPTOR}, version {version}")),
            Err(error) => Finding::of(Verdict::Warning, "adaptor", &error, "see docs/peer-pods.md"),
        })
    }

    fn guest_image(&self) -> Finding {
        let (name, versions) = ("guest image", Versions(&self.root));
        let Some(current) = versions.current() else {
            return Finding::failure(name, "no version is installed".to_owned(), "run \"cocoon node install\"");
        };
        match GuestImage::open(&versions.folder(&current).join("share/guest-image")) {
            Ok(image) => Finding::good(name, format!("whole, with kernel {}", image.manifest.kernel_release)),
            Err(error) => Finding::of(Verdict::Failure, name, &error, "install the release again"),
        }
    }

    fn containerd(&self) -> Finding {
        let name = "containerd";
        let containerd = match Containerd::find(&self.root) {
            Ok(containerd) => containerd,
            Err(error) => return Finding::of(Verdict::Failure, name, &error, "install containerd 1.7 or newer"),
        };
        let version = &containerd.version;
        let handlers = match crate::containerd::handlers(&self.root) {
            Ok(handlers) => handlers.join(", "),
            Err(error) => return Finding::of(Verdict::Failure, name, &error, "put that file right"),
        };
        if handlers.is_empty() {
            let found = format!("{version}; its configuration has no handler of ours");
            return Finding::failure(name, found, "run \"cocoon node install\"");
        }
        if containerd.process().is_none() {
            return Finding::failure(name, format!("{version}; it does not run"), "start it");
        }
        match containerd.is_outdated(&self.root) {
            true => Finding::failure(
                name,
                format!("{version}; it runs with an older configuration"),
                "restart it; pods that run go on",
            ),
            false => Finding::good(name, format!("{version}, with {handlers}")),
        }
    }

    fn snapshotter(&self) -> Finding {
        let name = "snapshotter";
        if !self.root.at(UNIT).exists() {
            let found = "it is not used: the node unpacks images as well".to_owned();
            return Finding::warning(name, found, "have systemd on the node, then install again");
        }
        match UnixStream::connect(self.root.at(SNAPSHOTTER)) {
            Ok(_) => Finding::good(name, format!("it answers on {SNAPSHOTTER}")),
            Err(error) => Finding::failure(
                name,
                format!("{SNAPSHOTTER}: {error}"),
                "systemctl restart cocoon-snapshotter; \"journalctl -u cocoon-snapshotter\" says why it ended",
            ),
        }
    }
}

fn qemu(classes: &[&Class]) -> Finding {
    let name = "QEMU";
    let output = Command::new(hypervisor::QEMU).arg("--version").stdin(Stdio::null()).output();
    let text = match output {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => {
            let found = format!("{}: {error}", hypervisor::QEMU);
            return Finding::failure(name, found, "install the package qemu-system-x86");
        }
    };
    // "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"
    let version = text.split_whitespace().skip_while(|word| *word != "version").nth(1).unwrap_or_default();
    let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        let found = format!("{:?} is no version", text.trim());
        return Finding::failure(name, found, "install the package qemu-system-x86");
    };
    if (major, minor) < OLDEST_QEMU {
        return Finding::failure(name, format!("{version}, and 7.2 is needed"), "upgrade it");
    }
    let wanting = classes.iter().filter_map(|class| Some((class.name, class.qemu()?)));
    match wanting.into_iter().find(|(_, needed)| (major, minor) < *needed) {
        Some((class, (major, minor))) => {
            let found = format!("{version}, and {class} needs {major}.{minor}");
            Finding::warning(name, found, "upgrade it, or run pods of that class on other nodes")
        }
        None => Finding::good(name, version.to_owned()),
    }
}

async fn kvm(needed: bool) -> Finding {
    let name = "KVM";
    match probe(Preference::Kvm).await {
        Ok(_) => Finding::good(name, "it runs a guest".to_owned()),
        Err(error) if needed => Finding::of(Verdict::Failure, name, &error, "use a machine with KVM"),
        Err(error) => Finding::of(Verdict::Warning, name, &error, "use a machine with KVM"),
    }
}

impl Finding {
    /// An error as a finding. Most say themselves what is next.
    pub fn of(verdict: Verdict, name: &str, error: &impl fmt::Display, next: &str) -> Self {
        let text = error.to_string();
        let (found, next) = text.rsplit_once("; next: ").unwrap_or((&text, next));
        Self { name: name.to_owned(), verdict, found: found.to_owned(), next: Some(next.to_owned()) }
    }

    /// Something is as it should be.
    pub fn good(name: &str, found: String) -> Self {
        Self { name: name.to_owned(), verdict: Verdict::Good, found, next: None }
    }

    /// Pods run without it.
    pub fn warning(name: &str, found: String, next: &str) -> Self {
        Self { name: name.to_owned(), verdict: Verdict::Warning, found, next: Some(next.to_owned()) }
    }

    /// Pods don't run.
    pub fn failure(name: &str, found: String, next: &str) -> Self {
        Self { name: name.to_owned(), verdict: Verdict::Failure, found, next: Some(next.to_owned()) }
    }
}

/// Where upstream's adaptor listens.
const ADAPTOR: &str = "/run/peerpod/hypervisor.sock";
const OLDEST_QEMU: (u32, u32) = (7, 2);
