//! `kbs-client backup`: the Trustee's store in one encrypted file.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use crate::Outcome;
use cli::trustee::Trustee;

/// Where the backup goes.
#[derive(Args)]
pub struct Arguments {
    /// The file to write, which must not be there yet.
    #[arg(long)]
    pub output: PathBuf,
    /// File with the administrator's token. Default: ~/.trustee/admin-token if it is there.
    #[arg(long)]
    pub admin_token_file: Option<PathBuf>,
}

/// Fetches a backup and writes it.
pub async fn run(trustee: &Trustee, output: &Path, as_json: bool) -> Outcome {
    let failed =
        |e| format!("{} can't be written: {e}; next: name a new file in a directory that is yours", output.display());
    let backup = trustee.get("backup").await?;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(output).map_err(failed)?;
    file.write_all(&backup).and_then(|()| file.sync_all()).map_err(failed)?;
    match as_json {
        true => println!("{}", json!({ "file": output, "bytes": backup.len() })),
        false => println!("{} holds {} bytes; keep the Trustee's master key with it", output.display(), backup.len()),
    }
    Ok(())
}
