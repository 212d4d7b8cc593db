//! `cocoon key-provider`: wraps the layer keys of skopeo and other encrypters, and registers keys with Trustee.
//!
//! Under the name `coco_keyprovider` the program is this command alone.

use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};

use clap::Args;
use cli::key_provider::{Credentials, KeyProvider, Registrar, Wrapped};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::Outcome;

#[derive(Args)]
pub struct Arguments {
    /// Where to listen. Layer keys travel here without encryption, so let it be the loopback.
    #[arg(long, value_name = "HOST:PORT")]
    socket: String,
    /// Register the keys with the Trustee at this URL. Without it, that is left to you.
    #[arg(long, value_name = "URL")]
    kbs: Option<String>,
    /// PEM file with the certificates to trust for --kbs instead of the system's.
    #[arg(long, value_name = "FILE", requires = "kbs")]
    kbs_cert: Option<PathBuf>,
    /// File with the administrator's token. Default: ~/.trustee/admin-token if it is there.
    #[arg(long, value_name = "FILE", requires = "kbs", conflicts_with = "auth_private_key")]
    admin_token_file: Option<PathBuf>,
    /// File with the administrator's private key (Ed25519, PKCS#8 PEM), to sign tokens with.
    #[arg(long, short, value_name = "FILE", requires = "kbs")]
    auth_private_key: Option<PathBuf>,
    /// Replace keys that Trustee holds already: images that were encrypted with them are lost.
    #[arg(long, requires = "kbs")]
    overwrite: bool,
    /// Go on in the background once it is listening.
    #[arg(long, short)]
    daemon: bool,
    /// Print a JSON document for every layer instead of a line for people.
    #[arg(long)]
    json: bool,
}

/// Serves until it is interrupted.
pub async fn key_provider(arguments: Arguments) -> Outcome {
    if arguments.daemon && std::env::var_os(DETACHED).is_none() {
        return detach();
    }
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    // Fails only if there is a provider already, and then that one will do.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();

    let registrar = match arguments.kbs {
        Some(url) => {
            if url.starts_with("http:") {
                eprintln!("cocoon: key provider: keys and credentials travel to {url} in the open; next: use https");
            }
            let credentials = match arguments.auth_private_key {
                Some(file) => Credentials::PrivateKey(file),
                None => Credentials::TokenFile(arguments.admin_token_file),
            };
            let registrar = Registrar::new(url, arguments.kbs_cert, credentials, arguments.overwrite);
            Some(registrar.map_err(|error| format!("key provider: {error}"))?)
        }
        None => None,
    };
    let failed = |error: io::Error| {
        let socket = &arguments.socket;
        format!("key provider: {socket} can't be listened on: {error}; next: give a free HOST:PORT with --socket")
    };
    let listener = TcpListener::bind(&arguments.socket).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    if !address.ip().is_loopback() {
        eprintln!("cocoon: key provider: layer keys travel to {address} in the open; next: listen on the loopback");
    }
    let as_json = arguments.json;
    let provider = KeyProvider::new(registrar, move |wrapped: &Wrapped| match as_json {
        true => say(&json!(wrapped).to_string()),
        false => say(&wrapped.to_string()),
    });
    match as_json {
        true => say(&json!({ "listening": address.to_string() }).to_string()),
        false => say(&format!("listening on {address}")),
    }
    let end = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    provider.serve(listener, end).await?;
    Ok(ExitCode::SUCCESS)
}

/// Starts the same program in the background, and returns when it is listening or has failed.
fn detach() -> Outcome {
    let own: Vec<OsString> = std::env::args_os().collect();
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.arg0(&own[0]).args(&own[1..]).env(DETACHED, "1");
    // Out of reach of the terminal's Ctrl-C.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line)?;
    }
    if line.is_empty() {
        let code = child.wait()?.code().and_then(|code| u8::try_from(code).ok());
        return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
    }
    say(line.trim_end());
    Ok(ExitCode::SUCCESS)
}

/// In the background nobody reads what is said.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Tells the program in the background that it is there.
const DETACHED: &str = "COCOON_KEY_PROVIDER_DETACHED";
