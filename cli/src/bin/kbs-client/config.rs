//! `kbs-client config`: sets resources, policies and reference values.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};
use wire::reference_value::{Message, VERSION};
use wire::resource::ResourcePath;

use crate::trustee::Trustee;
use crate::{Outcome, read};

/// Who administers, and what.
#[derive(Args)]
pub struct Arguments {
    /// File with the administrator's token. Default: ~/.trustee/admin-token if it is there.
    #[arg(long)]
    pub admin_token_file: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

/// What to administer.
#[derive(Subcommand)]
pub enum Command {
    /// Set a resource.
    SetResource {
        /// Its path: repository/type/tag.
        #[arg(long)]
        path: ResourcePath,
        /// The file that holds it.
        #[arg(long)]
        resource_file: PathBuf,
    },
    /// Delete a resource.
    DeleteResource {
        /// Its path: repository/type/tag.
        #[arg(long)]
        path: ResourcePath,
    },
    /// Set the policy that decides which guest may have which resource.
    SetResourcePolicy(ResourcePolicy),
    /// Set the policy that evidence is appraised under.
    SetAttestationPolicy {
        /// The policy's language, rego.
        #[arg(long = "type", default_value = "rego", value_parser = ["rego"])]
        language: String,
        /// The policy's id.
        #[arg(long, default_value = "default_cpu")]
        id: String,
        /// The file that holds it.
        #[arg(long)]
        policy_file: PathBuf,
    },
    /// Register a reference value: a list of one string, unless an option says otherwise.
    SetSampleReferenceValue {
        /// The name that policies ask for.
        name: String,
        /// The value.
        value: String,
        /// The value is an integer.
        #[arg(long, conflicts_with = "as_bool")]
        as_integer: bool,
        /// The value is true or false.
        #[arg(long)]
        as_bool: bool,
        /// Register the value itself and not a list.
        #[arg(long)]
        as_single_value: bool,
    },
    /// Print a reference value.
    GetReferenceValue {
        /// Its name.
        #[arg(long)]
        id: String,
    },
}

/// A policy from a file, or one of those that are often used.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct ResourcePolicy {
    /// The file that holds the policy.
    #[arg(long)]
    policy_file: Option<PathBuf>,
    /// Every guest that has attested may have every resource.
    #[arg(long)]
    allow_all: bool,
    /// No guest may have any resource.
    #[arg(long)]
    deny_all: bool,
    /// Guests of which every part is affirmed may have every resource.
    #[arg(long)]
    affirming: bool,
    /// The policy of a new Trustee: guests on real hardware may have every resource.
    #[arg(long)]
    default: bool,
}

/// Does what the command says.
pub async fn run(trustee: &Trustee, command: Command) -> Outcome {
    match command {
        Command::SetResource { path, resource_file } => {
            trustee.call(Method::POST, &format!("resource/{path}"), read(&resource_file)?).await?;
            println!("set {path}");
        }
        Command::DeleteResource { path } => {
            trustee.call(Method::DELETE, &format!("resource/{path}"), Vec::new()).await?;
            println!("deleted {path}");
        }
        Command::SetResourcePolicy(policy) => {
            let body = json!({ "policy": URL_SAFE_NO_PAD.encode(policy.text()?) });
            trustee.call(Method::POST, "resource-policy", body.to_string().into_bytes()).await?;
            println!("set the resource policy");
        }
        Command::SetAttestationPolicy { language, id, policy_file } => {
            let policy = URL_SAFE_NO_PAD.encode(read(&policy_file)?);
            let body = json!({ "type": language, "policy_id": id, "policy": policy });
            trustee.call(Method::POST, "attestation-policy", body.to_string().into_bytes()).await?;
            println!("set attestation policy {id}");
        }
        Command::SetSampleReferenceValue { name, value, as_integer, as_bool, as_single_value } => {
            let value = match (as_integer, as_bool) {
                (true, _) => Value::from(
                    value.parse::<i64>().map_err(|e| format!("--as-integer {value:?}: {e}; next: give an integer"))?,
                ),
                (_, true) => Value::from(
                    value.parse::<bool>().map_err(|e| format!("--as-bool {value:?}: {e}; next: give true or false"))?,
                ),
                _ => Value::from(value),
            };
            let message = message(&name, if as_single_value { value } else { json!([value]) });
            trustee.call(Method::POST, "reference-value", serde_json::to_vec(&message)?).await?;
            println!("registered {name}");
        }
        Command::GetReferenceValue { id } => {
            let value = trustee.call(Method::GET, &format!("reference-value/{id}"), Vec::new()).await?;
            println!("{}", String::from_utf8_lossy(&value));
        }
    }
    Ok(())
}

impl ResourcePolicy {
    fn text(&self) -> Result<Vec<u8>, String> {
        let chosen = [(self.allow_all, ALLOW_ALL), (self.deny_all, DENY_ALL), (self.affirming, AFFIRMING)];
        match &self.policy_file {
            Some(path) => read(path),
            None => Ok(chosen.into_iter().find_map(|(on, text)| on.then_some(text)).unwrap_or(DEFAULT).into()),
        }
    }
}

fn message(name: &str, value: Value) -> Message {
    let payload = STANDARD.encode(json!({ name: value }).to_string());
    Message { version: VERSION.to_owned(), kind: "sample".to_owned(), payload }
}

const ALLOW_ALL: &str = r#"package policy

import rego.v1

default allow := false

allow if data.plugin == "resource"
"#;

const DENY_ALL: &str = "package policy

default allow := false
";

const AFFIRMING: &str = r#"package policy

import rego.v1

default allow := false

allow if {
	data.plugin == "resource"
	count(input.submods) > 0
	every part in input.submods { part["ear.status"] == "affirming" }
}
"#;

const DEFAULT: &str = r#"package policy

import rego.v1

default allow := false

allow if {
	data.plugin == "resource"
	evidence := input.submods.cpu0["ear.veraison.annotated-evidence"]
	not evidence.sample
}
"#;
