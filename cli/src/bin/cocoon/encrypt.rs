//! `cocoon image encrypt`: the layers of an OCI layout, encrypted for guests that Trustee gives the key to.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use cli::image::EncryptOptions;

use crate::Outcome;

#[derive(Args)]
pub struct Arguments {
    /// The image: an OCI layout, as DIR or oci:DIR[:TAG].
    source: String,
    /// Folder of the encrypted image; it must not exist.
    destination: PathBuf,
    /// The key encryption key: 32 bytes, to be given to Trustee.
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// Make a new key and write it to --key-file.
    #[arg(long)]
    generate_key: bool,
    /// The name under which guests get the key from Trustee.
    #[arg(long, value_name = "kbs:///REPOSITORY/TYPE/TAG")]
    key_id: String,
    /// Encrypt this layer alone, 0 is the bottom; may be given several times. All layers if left out.
    #[arg(long = "layer", value_name = "INDEX")]
    layers: Vec<usize>,
}

/// Encrypts the image and prints what became of it.
pub fn encrypt(arguments: Arguments) -> Outcome {
    let report = cli::image::encrypt(EncryptOptions {
        source: arguments.source,
        destination: arguments.destination,
        key_file: arguments.key_file,
        generate_key: arguments.generate_key,
        key_id: arguments.key_id,
        layers: arguments.layers,
    })?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(ExitCode::SUCCESS)
}
