//! systemd, where the node has it: the snapshotter's unit, and systemctl where this machine is the node.

use std::process::{Command, Stdio};

use crate::error::Error;
use crate::root::{CURRENT, Root};

/// Whether the node was booted by systemd.
pub(crate) fn is_there(root: &Root) -> bool {
    root.at("/run/systemd/system").is_dir()
}

/// The snapshotter's unit, which is started before these, for the containerd of this socket.
pub(crate) fn unit(services: &[&str], containerd: &str) -> String {
    format!(
        "# Written by \"cocoon node install\".\n[Unit]\nDescription=Cocoon's snapshotter, which leaves images to guests\n\
         Before={}\n\n[Service]\nExecStart={CURRENT}/bin/cocoon-snapshotter --containerd {containerd}\nRestart=always\n\n\
         [Install]\nWantedBy=multi-user.target\n",
        services.join(" ")
    )
}

/// Runs systemctl, if this machine is the node and has it; says whether it has.
///
/// # Errors
/// [`Error::Systemctl`].
pub(crate) fn control(root: &Root, arguments: &[&str]) -> Result<bool, Error> {
    if !root.is_own() || !is_there(root) {
        return Ok(false);
    }
    let failed = |reason: String| Error::Systemctl { command: arguments.join(" "), reason };
    let output = match Command::new("systemctl").args(arguments).stdin(Stdio::null()).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        output => output.map_err(|error| failed(error.to_string()))?,
    };
    match output.status.success() {
        true => Ok(true),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}
