//! `cocoon image`: what an owner does with an image in an OCI layout before guests get it.

use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use cli::image::{EncryptOptions, SignOptions};
use serde::Serialize;

use crate::Outcome;

#[derive(Subcommand)]
pub enum Command {
    /// Encrypt the layers of an image, for guests that Trustee gives the key to.
    Encrypt(Encrypt),
    /// Sign an image as cosign does with a key; the signature lies beside the image in the layout.
    Sign(Sign),
    /// Print digests, platforms, layers, keys and signatures.
    Inspect(Inspect),
}

#[derive(Args)]
pub struct Encrypt {
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
    /// Let the holder of this key decrypt the layers too, without Trustee: a public key in PEM, RSA or P-256.
    #[arg(long = "recipient", value_name = "FILE")]
    recipients: Vec<PathBuf>,
    /// Print one JSON document instead of lines for people.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Sign {
    /// The image: an OCI layout, as DIR or oci:DIR[:TAG].
    source: String,
    /// The private key: P-256 in PEM.
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// Make a new key, and write it to --key-file and its public half to the same name with .pub.
    #[arg(long)]
    generate_key: bool,
    /// Where the image is going to be, which policies compare.
    #[arg(long, value_name = "REGISTRY/REPOSITORY[:TAG]")]
    reference: String,
    /// Print one JSON document instead of lines for people.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Inspect {
    /// The image: an OCI layout, as DIR or oci:DIR[:TAG]. Without a tag, every image in it.
    source: String,
    /// Print one JSON document instead of lines for people.
    #[arg(long)]
    json: bool,
}

/// Runs one of the commands.
pub fn image(command: Command) -> Outcome {
    match command {
        Command::Encrypt(arguments) => {
            let report = cli::image::encrypt(EncryptOptions {
                source: arguments.source,
                destination: arguments.destination,
                key_file: arguments.key_file,
                generate_key: arguments.generate_key,
                key_id: arguments.key_id,
                layers: arguments.layers,
                recipients: arguments.recipients,
            })?;
            print(&report, arguments.json)
        }
        Command::Sign(Sign { source, key_file, generate_key, reference, json }) => {
            print(&cli::image::sign(&SignOptions { source, key_file, generate_key, reference })?, json)
        }
        Command::Inspect(Inspect { source, json }) => print(&cli::image::inspect(&source)?, json),
    }
}

fn print(report: &(impl Display + Serialize), as_json: bool) -> Outcome {
    match as_json {
        true => println!("{}", serde_json::to_string_pretty(report)?),
        false => println!("{}", report.to_string().trim_end()),
    }
    Ok(ExitCode::SUCCESS)
}
