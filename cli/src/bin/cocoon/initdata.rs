//! `cocoon initdata`: the document with which an owner configures and restricts a guest.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use wire::initdata::InitData;

use crate::Outcome;

#[derive(Subcommand)]
pub enum Command {
    /// Put policy and configuration files into one document and print its digest.
    Build(Build),
    /// Print a document's digest and files.
    Show(Show),
}

#[derive(Args)]
pub struct Build {
    /// What the host may ask of the guest, in Rego.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Configuration of the attestation agent: which Trustee it asks.
    #[arg(long, value_name = "FILE")]
    aa: Option<PathBuf>,
    /// Configuration of the data hub: where keys and images come from.
    #[arg(long, value_name = "FILE")]
    cdh: Option<PathBuf>,
    /// The digest that the hardware will hold.
    #[arg(long, value_enum, default_value_t = Algorithm::Sha256)]
    algorithm: Algorithm,
    /// The document.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Args)]
pub struct Show {
    /// A document, or the image of an initdata disk.
    file: PathBuf,
    /// Print the digest alone, in hexadecimal.
    #[arg(long)]
    digest: bool,
}

#[derive(Clone, Copy, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Algorithm {
    Sha256,
    Sha384,
    Sha512,
}

/// Runs one of the commands.
pub fn initdata(command: Command) -> Outcome {
    match command {
        Command::Build(arguments) => build(&arguments)?,
        Command::Show(arguments) => show(&arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a document from a file.
pub fn read(path: &Path) -> Result<InitData, Box<dyn Error>> {
    let failed = |cause: &dyn std::fmt::Display| {
        format!("initdata: {} can't be used: {cause}; next: build it with \"cocoon initdata build\"", path.display())
    };
    let length = fs::metadata(path).map_err(|error| failed(&error))?.len();
    if length > MAX_FILE {
        return Err(failed(&format!("it is larger than {MAX_FILE} bytes")).into());
    }
    match InitData::from_disk(File::open(path).map_err(|error| failed(&error))?) {
        Ok(document) => Ok(document),
        Err(wire::initdata::Error::NotInitData | wire::initdata::Error::Io(_)) => {
            let text = fs::read_to_string(path).map_err(|error| failed(&error))?;
            Ok(InitData::parse(text).map_err(|error| failed(&error))?)
        }
        Err(error) => Err(failed(&error).into()),
    }
}

fn build(arguments: &Build) -> Result<(), Box<dyn Error>> {
    #[derive(Serialize)]
    struct Document {
        version: &'static str,
        algorithm: Algorithm,
        data: BTreeMap<&'static str, String>,
    }
    let files = [("policy.rego", &arguments.policy), ("aa.toml", &arguments.aa), ("cdh.toml", &arguments.cdh)];
    let mut data = BTreeMap::new();
    for (name, path) in files {
        let Some(path) = path else { continue };
        let text = fs::read_to_string(path)
            .map_err(|error| format!("initdata: {} can't be read: {error}; next: check the path", path.display()))?;
        if name.ends_with(".toml") {
            toml::from_str::<toml::Table>(&text).map_err(|error| {
                format!("initdata: {} is not TOML: {}; next: correct it", path.display(), error.message())
            })?;
        }
        data.insert(name, text);
    }
    if data.is_empty() {
        return Err("initdata: there is nothing to put into it; next: give --policy, --aa or --cdh".into());
    }
    let text = toml::to_string_pretty(&Document { version: "0.1.0", algorithm: arguments.algorithm, data })?;
    let document = InitData::parse(text)?;
    fs::write(&arguments.output, document.text()).map_err(|error| {
        format!("initdata: {} can't be written: {error}; next: check the folder", arguments.output.display())
    })?;
    print_digest(&document)
}

fn show(arguments: &Show) -> Result<(), Box<dyn Error>> {
    let document = read(&arguments.file)?;
    if !arguments.digest {
        println!("{}", document.text());
    }
    print_digest(&document)
}

fn print_digest(document: &InitData) -> Result<(), Box<dyn Error>> {
    writeln!(io::stdout(), "{}", hex::encode(document.digest()))?;
    Ok(())
}

/// Kubernetes takes no larger annotation; text inflates from it to a few MiB at the most.
const MAX_FILE: u64 = 4 << 20;
