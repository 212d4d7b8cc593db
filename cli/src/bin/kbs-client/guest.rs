//! `kbs-client attest` and `get-resource`: what a guest does, from the command line.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use evidence::Attester;
use serde_json::json;
use wire::initdata::InitData;
use wire::jwe::TeeKey;
use wire::resource::ResourcePath;

use crate::handshake::Guest;
use crate::{Outcome, read};
use cli::trustee::Trustee;

/// How to attest.
#[derive(Args)]
pub struct Attest {
    /// File with the initdata document to send along.
    init_data: Option<PathBuf>,
    /// The same as an option.
    #[arg(long, conflicts_with = "init_data")]
    initdata: Option<PathBuf>,
    /// File with the private key that secrets are to be sealed to, instead of a new one: RSA in PKCS#1 PEM, or EC P-256
    /// or P-521 or ML-KEM-768 in PKCS#8 PEM.
    #[arg(long)]
    tee_key_file: Option<PathBuf>,
}

/// What to fetch.
#[derive(Args)]
pub struct GetResource {
    /// The resource's path: repository/type/tag.
    #[arg(long)]
    path: ResourcePath,
    /// File with an attestation token to show instead of attesting; it was issued for the key in --tee-key-file.
    #[arg(long, requires = "tee_key_file")]
    attestation_token: Option<PathBuf>,
    #[command(flatten)]
    attest: Attest,
}

/// Attests and prints the token.
pub async fn attest(url: &str, cert_file: Option<&Path>, arguments: Attest, as_json: bool) -> Outcome {
    let mut guest = guest(url, cert_file, &arguments)?;
    let token = guest.attest(&attester()?, initdata(&arguments)?.as_ref()).await?;
    match as_json {
        true => println!("{}", json!({ "token": token })),
        false => println!("{token}"),
    }
    Ok(())
}

/// Attests, or shows a token, fetches a resource and prints it in base64.
pub async fn get_resource(url: &str, cert_file: Option<&Path>, arguments: GetResource, as_json: bool) -> Outcome {
    let mut guest = guest(url, cert_file, &arguments.attest)?;
    let token = match &arguments.attestation_token {
        Some(path) => text(path)?.trim().to_owned(),
        None => guest.attest(&attester()?, initdata(&arguments.attest)?.as_ref()).await?,
    };
    let resource = guest.fetch(&arguments.path, &token).await?;
    let encoded = STANDARD.encode(&resource);
    match as_json {
        true => println!("{}", json!({ "path": arguments.path.as_str(), "resource": encoded })),
        false => println!("{encoded}"),
    }
    Ok(())
}

fn guest(url: &str, cert_file: Option<&Path>, arguments: &Attest) -> Result<Guest, Box<dyn std::error::Error>> {
    let key = match &arguments.tee_key_file {
        Some(path) => TeeKey::from_pem(&zeroize::Zeroizing::new(text(path)?)).map_err(|e| {
            format!(
                "--tee-key-file {}: {e}; next: give RSA in PKCS#1 PEM, or EC or ML-KEM in PKCS#8 PEM",
                path.display()
            )
        })?,
        None => TeeKey::generate()?,
    };
    Ok(Guest::new(Trustee::anonymous(url, cert_file)?, key))
}

fn attester() -> Result<Attester, evidence::Error> {
    Attester::detect(Path::new("/"))
}

fn initdata(arguments: &Attest) -> Result<Option<InitData>, String> {
    let path = arguments.initdata.as_ref().or(arguments.init_data.as_ref());
    let parse = |path: &PathBuf| {
        InitData::parse(text(path)?)
            .map_err(|e| format!("initdata {}: {e}; next: build it with \"cocoon initdata build\"", path.display()))
    };
    path.map(parse).transpose()
}

fn text(path: &Path) -> Result<String, String> {
    let not_text = |_| format!("{} is not text; next: check that it is the right file", path.display());
    String::from_utf8(read(path)?).map_err(not_text)
}
