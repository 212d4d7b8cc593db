//! Container images made from real files by umoci, and encrypted by `cocoon image encrypt`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::{Lab, run};

/// An image in an OCI layout.
pub struct Image {
    layout: PathBuf,
}

impl Image {
    /// busybox with a script as its entry point, made of the machine's own files.
    ///
    /// # Panics
    /// If umoci fails or there is no static busybox.
    pub fn busybox(lab: &Lab, name: &str, script: &str) -> Self {
        let layout = lab.path().join(name);
        let files = lab.path().join(format!("{name}-files"));
        fs::create_dir_all(files.join("bin")).unwrap();
        fs::copy("/bin/busybox", files.join("bin/busybox")).unwrap();
        for applet in ["sh", "cat", "echo", "wget", "sleep", "id", "ls", "hostname", "mount", "ps", "env"] {
            std::os::unix::fs::symlink("busybox", files.join("bin").join(applet)).unwrap();
        }
        fs::write(files.join("entrypoint"), format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(files.join("entrypoint"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(files.join("tmp")).unwrap();
        fs::set_permissions(files.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();

        let image = format!("{}:latest", layout.display());
        run("umoci", ["init", "--layout", &layout.display().to_string()]);
        run("umoci", ["new", "--image", &image]);
        run("umoci", ["insert", "--rootless", "--image", &image, &files.display().to_string(), "/"]);
        run("umoci", ["config", "--image", &image, "--config.entrypoint", "/entrypoint", "--config.env", "PATH=/bin"]);
        Self { layout }
    }

    /// The same image with encrypted layers.
    ///
    /// # Panics
    /// If it can't be encrypted.
    pub fn encrypted(&self, key_id: &str) -> Encrypted {
        let destination = self.layout.with_extension("encrypted");
        let key = self.layout.with_extension("key");
        run(
            Lab::program("cocoon"),
            [
                "image".as_ref(),
                "encrypt".as_ref(),
                "--generate-key".as_ref(),
                "--key-file".as_ref(),
                key.as_os_str(),
                "--key-id".as_ref(),
                key_id.as_ref(),
                format!("oci:{}:latest", self.layout.display()).as_ref(),
                destination.as_os_str(),
            ],
        );
        Encrypted { image: Self { layout: destination }, key }
    }

    /// The image's OCI layout.
    pub fn layout(&self) -> &Path {
        &self.layout
    }
}

/// An image whose layers are encrypted, with its key.
pub struct Encrypted {
    /// The image.
    pub image: Image,
    /// File with the key encryption key.
    pub key: PathBuf,
}
