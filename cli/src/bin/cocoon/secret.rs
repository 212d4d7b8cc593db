//! `cocoon secret`: sealed secrets, which a cluster carries and only guests can resolve.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use cli::secret::{self, Sealer};

use crate::Outcome;

#[derive(Subcommand)]
pub enum Command {
    /// Seal a secret and print it.
    Seal(Seal),
    /// Check a sealed secret's signature, and decrypt an envelope into FILE.unsealed.
    Unseal(Unseal),
    /// Make a key to seal with: KID-private.json, and KID-public.json for guests to verify with.
    Keygen(Keygen),
}

#[derive(Args)]
pub struct Seal {
    /// Where guests find the public key: a resource, or the name of a file in the guest.
    #[arg(long, value_name = "kbs:///REPOSITORY/TYPE/TAG|NAME")]
    signing_kid: String,
    /// The private key: a JWK on P-256.
    #[arg(long, value_name = "FILE")]
    signing_jwk_path: PathBuf,
    #[command(subcommand)]
    payload: Payload,
}

#[derive(Subcommand)]
enum Payload {
    /// The name of a secret that a provider keeps.
    Vault {
        /// The secret's name: for kbs a resource, kbs:///REPOSITORY/TYPE/TAG.
        #[arg(long, value_name = "NAME")]
        resource_uri: String,
        /// Who keeps it: kbs, aliyun or aws.
        #[arg(long, default_value = "kbs")]
        provider: String,
        /// What the provider's client needs to know, as a JSON object.
        #[arg(long, value_name = "JSON")]
        provider_settings: Option<String>,
        /// What the provider needs for this secret, as a JSON object.
        #[arg(long, value_name = "JSON")]
        annotations: Option<String>,
    },
    /// The secret itself, encrypted with a key that Trustee gives to guests.
    Envelope {
        /// The key's name.
        #[arg(long, short, value_name = "kbs:///REPOSITORY/TYPE/TAG")]
        key_id: String,
        /// The file with the secret.
        #[arg(long, short, value_name = "FILE")]
        file: PathBuf,
        /// The key: a file of 32 bytes, to be given to Trustee.
        #[arg(long, value_name = "FILE")]
        key_path: PathBuf,
        /// Make a new key and write it to --key-path.
        #[arg(long)]
        generate_key: bool,
    },
}

#[derive(Args)]
pub struct Unseal {
    /// The file with the sealed secret.
    #[arg(long, short, value_name = "FILE")]
    file: PathBuf,
    /// The public key to verify with: a JWK on P-256.
    #[arg(long, value_name = "FILE", required_unless_present = "skip_verification")]
    jwk_path: Option<PathBuf>,
    /// Do not look at the signature.
    #[arg(long, short, conflicts_with = "jwk_path")]
    skip_verification: bool,
    /// The key of an envelope: a file of 32 bytes.
    #[arg(long, short, value_name = "FILE")]
    key_path: Option<PathBuf>,
}

#[derive(Args)]
pub struct Keygen {
    /// The key's name.
    #[arg(long, default_value = "sealed-signing")]
    kid: String,
    /// Where to write both files, which must not exist.
    #[arg(long, value_name = "DIR", default_value = ".")]
    output_dir: PathBuf,
}

/// Runs one of the commands.
pub fn secret(command: Command) -> Outcome {
    match command {
        Command::Seal(Seal { signing_kid, signing_jwk_path, payload }) => {
            let sealer = Sealer::new(&signing_kid, &signing_jwk_path)?;
            let sealed = match payload {
                Payload::Vault { resource_uri, provider, provider_settings, annotations } => {
                    let (settings, annotations) = (provider_settings.as_deref(), annotations.as_deref());
                    sealer.vault(&resource_uri, &provider, settings, annotations)?
                }
                Payload::Envelope { key_id, file, key_path, generate_key } => {
                    sealer.envelope(&key_id, &file, &key_path, generate_key)?
                }
            };
            println!("{sealed}");
        }
        Command::Unseal(Unseal { file, jwk_path, key_path, skip_verification: _ }) => {
            let unsealed = secret::unseal(&file, jwk_path.as_deref(), key_path.as_deref())?;
            println!("{}", unsealed.display());
        }
        Command::Keygen(Keygen { kid, output_dir }) => {
            for file in secret::keygen(&kid, &output_dir)? {
                println!("{}", file.display());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
