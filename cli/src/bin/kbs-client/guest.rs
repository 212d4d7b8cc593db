//! `kbs-client attest` and `get-resource`: what a guest does, from the command line.

use std::path::{Path, PathBuf};

use attestation_agent::{AaConfig, AttestationAgent};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use evidence::Attester;
use wire::initdata::InitData;
use wire::resource::{ResourcePath, ResourceUri};

use crate::{Outcome, read};

/// How to attest.
#[derive(Args)]
pub struct Attest {
    /// File with the initdata document to send along.
    init_data: Option<PathBuf>,
    /// The same as an option.
    #[arg(long, conflicts_with = "init_data")]
    initdata: Option<PathBuf>,
}

/// What to fetch.
#[derive(Args)]
pub struct GetResource {
    /// The resource's path: repository/type/tag.
    #[arg(long)]
    path: ResourcePath,
    #[command(flatten)]
    attest: Attest,
}

/// Attests and prints the token.
pub async fn attest(url: &str, cert_file: Option<&Path>, arguments: Attest) -> Outcome {
    let token = agent(url, cert_file, arguments)?.token().await?;
    println!("{}", token.jwt());
    Ok(())
}

/// Attests, fetches a resource and prints it in base64.
pub async fn get_resource(url: &str, cert_file: Option<&Path>, arguments: GetResource) -> Outcome {
    let agent = agent(url, cert_file, arguments.attest)?;
    let resource = agent.get_resource(&ResourceUri::resource(&arguments.path)).await?;
    println!("{}", STANDARD.encode(&resource));
    Ok(())
}

fn agent(
    url: &str,
    cert_file: Option<&Path>,
    arguments: Attest,
) -> Result<AttestationAgent, Box<dyn std::error::Error>> {
    let mut config = AaConfig::from_kbc_params(&format!("cc_kbc::{url}"))?;
    if let (Some(kbs), Some(path)) = (&mut config.token_configs.kbs, cert_file) {
        kbs.cert = Some(text(path)?);
    }
    let initdata =
        match arguments.initdata.or(arguments.init_data) {
            Some(path) => Some(InitData::parse(text(&path)?).map_err(|e| {
                format!("initdata {}: {e}; next: build it with \"cocoon initdata build\"", path.display())
            })?),
            None => None,
        };
    Ok(AttestationAgent::new(config, Attester::detect(Path::new("/"))?, initdata)?)
}

fn text(path: &Path) -> Result<String, String> {
    let not_text = |_| format!("{} is not text; next: check that it is the right file", path.display());
    String::from_utf8(read(path)?).map_err(not_text)
}
