//! `cocoon direct-volume`: what storage drivers tell the runtime about their volumes, and ask about them.

use std::process::ExitCode;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use clap::{Args, Subcommand};
use direct_volume::{Assignments, MountInfo};
use node_install::Pod;
use sandbox::{Directory, SandboxName};

use crate::Outcome;

#[derive(Subcommand)]
pub enum Command {
    /// Note which device is behind a volume, for the pod that is going to mount it.
    Add {
        #[command(flatten)]
        volume: Volume,
        /// JSON: {"volume-type":"blk","device":"/dev/sdb","fstype":"ext4","metadata":{},"options":[]}.
        #[arg(value_name = "MOUNT_INFO", required_unless_present = "mount_info")]
        info: Option<String>,
        /// The same.
        #[arg(long, value_name = "MOUNT_INFO", conflicts_with = "info")]
        mount_info: Option<String>,
    },
    /// Forget a volume.
    #[command(visible_alias = "delete")]
    Remove(Volume),
    /// Print how full the volume of a running pod is, as JSON.
    Stats(Volume),
    /// Let the volume of a running pod grow. Refused: the guest's disk can't.
    Resize {
        #[command(flatten)]
        volume: Volume,
        /// Bytes.
        #[arg(value_name = "SIZE", required_unless_present = "size")]
        bytes: Option<u64>,
        /// The same.
        #[arg(long, value_name = "SIZE", conflicts_with = "bytes")]
        size: Option<u64>,
    },
}

/// A volume, named in either of upstream's forms.
#[derive(Args)]
pub struct Volume {
    /// The path on the node at which the pod has the volume.
    #[arg(value_name = "VOLUME_PATH", required_unless_present = "volume_path")]
    path: Option<String>,
    /// The same.
    #[arg(long, value_name = "VOLUME_PATH", conflicts_with = "path")]
    volume_path: Option<String>,
}

impl Volume {
    fn path(self) -> String {
        self.volume_path.or(self.path).unwrap_or_default()
    }
}

pub async fn direct_volume(command: Command) -> Outcome {
    let node = Assignments::default();
    match command {
        Command::Add { volume, info, mount_info } => {
            let info = MountInfo::parse(&mount_info.or(info).unwrap_or_default())?;
            node.add(&volume.path(), &info)?;
        }
        Command::Remove(volume) => node.remove(&volume.path())?,
        Command::Stats(volume) => {
            println!("{}", ask(&node, &volume.path(), "stats").await?);
        }
        Command::Resize { volume, .. } => {
            ask(&node, &volume.path(), "resize").await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks the shim of the pod that has the volume.
async fn ask(node: &Assignments, volume: &str, what: &str) -> Result<String, Box<dyn std::error::Error>> {
    let nobody = || format!("direct volume: no running pod has {volume:?}; next: start the pod that mounts it");
    let owner = SandboxName::parse(&node.owner(volume)?.ok_or_else(nobody)?)?;
    let socket = Directory::path_of(&owner).join(Pod::MANAGEMENT);
    if !socket.exists() {
        return Err(nobody().into());
    }
    // No connection is encrypted here, but the client can't be made without somebody who could.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().unix_socket(socket).timeout(LIMIT).build()?;
    let path = URL_SAFE.encode(volume).replace('=', "%3D");
    let answer = client.post(format!("http://pod/direct-volume/{what}?path={path}")).send().await?;
    let succeeded = answer.status().is_success();
    let text = answer.text().await?;
    if succeeded { Ok(text) } else { Err(text.into()) }
}

/// A busy guest may take a while.
const LIMIT: Duration = Duration::from_secs(30);
