//! Installs the distribution packages that the project is built and tested with.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Error, run, step};

/// Installs what is missing, as root or through sudo.
pub fn install() -> Result<(), Error> {
    let missing: Vec<&str> =
        PACKAGES.iter().filter(|package| !Path::new(package.file).exists()).map(|package| package.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err(Error(format!(
            "packages: this system has no apt; next: install the equivalents of {} by hand",
            missing.join(", ")
        )));
    }
    step(&format!("installing {}", missing.join(", ")));
    let install = ["install", "--yes", "--no-install-recommends"];
    if apt(&install).args(&missing).status().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    // The lists may be old, or there may be none yet.
    run(&mut apt(&["update"]))?;
    run(apt(&install).args(&missing))
}

fn apt(arguments: &[&str]) -> Command {
    let mut command = if is_root() {
        Command::new("apt-get")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("apt-get");
        sudo
    };
    command.args(["-o", "Dpkg::Use-Pty=0", "-qq"]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn is_root() -> bool {
    let user = Command::new("id").arg("-u").stdout(Stdio::piped()).output();
    user.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// A package, and a file by which it is known to be installed.
struct Package {
    name: &'static str,
    file: &'static str,
}

const PACKAGES: &[Package] = &[
    // aws-lc and SQLite are C.
    Package { name: "gcc", file: "/usr/bin/gcc" },
    Package { name: "libc6-dev", file: "/usr/include/stdio.h" },
    Package { name: "make", file: "/usr/bin/make" },
    Package { name: "qemu-system-x86", file: "/usr/bin/qemu-system-x86_64" },
    Package { name: "docker-registry", file: "/usr/bin/docker-registry" },
    Package { name: "skopeo", file: "/usr/bin/skopeo" },
    Package { name: "umoci", file: "/usr/bin/umoci" },
    Package { name: "busybox-static", file: "/bin/busybox" },
    // What a Trustee of several replicas stands on, and the token that holds its keys.
    Package { name: "postgresql-15", file: "/usr/lib/postgresql/15/bin/postgres" },
    Package { name: "haproxy", file: "/usr/sbin/haproxy" },
    Package { name: "openssl", file: "/usr/bin/openssl" },
    Package { name: "softhsm2", file: "/usr/bin/softhsm2-util" },
    Package { name: "opensc", file: "/usr/bin/pkcs11-tool" },
    Package { name: "nebula", file: "/usr/bin/nebula-cert" },
    // Volumes: the file systems in them, layers with hash trees, and the program that ours are compared with.
    Package { name: "e2fsprogs", file: "/usr/sbin/mke2fs" },
    Package { name: "erofs-utils", file: "/usr/bin/mkfs.erofs" },
    Package { name: "cryptsetup-bin", file: "/usr/sbin/cryptsetup" },
    // A TPM in software, and whose signatures images carry.
    Package { name: "swtpm", file: "/usr/bin/swtpm" },
    Package { name: "gnupg", file: "/usr/bin/gpg" },
    // What containerd runs ordinary containers with, and connects pods with.
    Package { name: "runc", file: "/usr/sbin/runc" },
    Package { name: "containernetworking-plugins", file: "/usr/lib/cni/bridge" },
    Package { name: "iptables", file: "/usr/sbin/iptables" },
    Package { name: "iproute2", file: "/bin/ip" },
    Package { name: "ca-certificates", file: "/etc/ssl/certs/ca-certificates.crt" },
    Package { name: "debian-archive-keyring", file: "/usr/share/keyrings/debian-archive-keyring.gpg" },
];
