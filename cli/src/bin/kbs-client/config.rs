//! `kbs-client config`: sets resources, policies and reference values.

use std::error::Error;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};
use wire::reference_value::{Message, sign_message};
use wire::resource::ResourcePath;
use zeroize::Zeroizing;

use crate::read;
use cli::trustee::Trustee;

/// Who administers, and what.
#[derive(Args)]
pub struct Arguments {
    /// File with the administrator's token. Default: ~/.trustee/admin-token if it is there.
    #[arg(long)]
    pub admin_token_file: Option<PathBuf>,
    /// Make a change only if what it changes still has this ETag, as an earlier command printed it.
    #[arg(long)]
    pub if_match: Option<String>,
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
    /// Register the reference values of a message: a JSON file with version, type and payload.
    RegisterReferenceValues {
        /// The message's file.
        #[arg(long)]
        message_file: PathBuf,
        /// Sign it with this private key (PKCS#8 PEM; Ed25519, EC P-256 or P-384) before it is sent.
        #[arg(long)]
        signing_key_file: Option<PathBuf>,
    },
    /// Print a reference value.
    GetReferenceValue {
        /// Its name.
        #[arg(long)]
        id: String,
        /// Print what it was, newest first.
        #[arg(long)]
        history: bool,
    },
    /// Print the names and values of all reference values.
    ListReferenceValues,
    /// Delete a reference value.
    DeleteReferenceValue {
        /// Its name.
        #[arg(long)]
        id: String,
    },
    /// Print the paths of all resources.
    ListResources {
        /// Only those of this repository.
        #[arg(long)]
        repository: Option<String>,
    },
    /// Print the ids of the resource policies.
    ListResourcePolicies,
    /// Print a resource policy.
    GetResourcePolicy(OldPolicy),
    /// Put an old version of a resource policy in force again.
    RollbackResourcePolicy(Rollback),
    /// Delete a resource policy; the Trustee's own becomes the default again.
    DeleteResourcePolicy {
        /// Its id.
        #[arg(long)]
        id: String,
    },
    /// Print the ids of the attestation policies.
    ListAttestationPolicies,
    /// Print an attestation policy.
    GetAttestationPolicy(OldPolicy),
    /// Put an old version of an attestation policy in force again.
    RollbackAttestationPolicy(Rollback),
    /// Delete an attestation policy; a shipped one becomes what it was.
    DeleteAttestationPolicy {
        /// Its id.
        #[arg(long)]
        id: String,
    },
}

/// A policy as it is, or as it was.
#[derive(Args)]
pub struct OldPolicy {
    /// Its id.
    #[arg(long)]
    id: String,
    /// As it was at this version.
    #[arg(long)]
    version: Option<String>,
    /// Print its versions, newest first.
    #[arg(long, conflicts_with = "version")]
    history: bool,
}

/// Which version of which policy.
#[derive(Args)]
pub struct Rollback {
    /// The policy's id.
    #[arg(long)]
    id: String,
    /// The version, as the history has it.
    #[arg(long)]
    version: String,
}

/// A policy from a file, or one of those that are often used.
#[derive(Args)]
pub struct ResourcePolicy {
    /// The file that holds the policy.
    #[arg(long, group = "policy", required_unless_present_any = ["allow_all", "deny_all", "affirming", "default"])]
    policy_file: Option<PathBuf>,
    /// Every guest that has attested may have every resource.
    #[arg(long, group = "policy")]
    allow_all: bool,
    /// No guest may have any resource.
    #[arg(long, group = "policy")]
    deny_all: bool,
    /// Guests of which every part is affirmed may have every resource.
    #[arg(long, group = "policy")]
    affirming: bool,
    /// The policy of a new Trustee: guests on real hardware may have every resource.
    #[arg(long, group = "policy")]
    default: bool,
    /// Set the policy of this tenant.
    #[arg(long)]
    tenant: Option<String>,
}

/// Does what the command says. With `if_match`, a change is made only if what it changes has this ETag.
pub async fn run(trustee: &Trustee, command: Command, if_match: Option<&str>) -> Result<Report, Box<dyn Error>> {
    let change = async |method: Method, path: &str, body: Vec<u8>, done: String| -> Result<Report, Box<dyn Error>> {
        let etag = trustee.call(method, path, body, if_match).await?.etag;
        Ok(Report::Done { done, etag })
    };
    let print = async |path: &str| Ok(Report::Answer(trustee.get(path).await?));
    match command {
        Command::SetResource { path, resource_file } => {
            change(Method::POST, &format!("resource/{path}"), read(&resource_file)?, format!("set {path}")).await
        }
        Command::DeleteResource { path } => {
            change(Method::DELETE, &format!("resource/{path}"), Vec::new(), format!("deleted {path}")).await
        }
        Command::ListResources { repository } => {
            let query = repository.map(|name| format!("?repository={name}")).unwrap_or_default();
            print(&format!("resource{query}")).await
        }
        Command::SetResourcePolicy(policy) => {
            let body = json!({ "policy": URL_SAFE_NO_PAD.encode(policy.text()?) }).to_string();
            change(Method::POST, &policy.path(), body.into_bytes(), "set the resource policy".to_owned()).await
        }
        Command::SetAttestationPolicy { language, id, policy_file } => {
            let policy = URL_SAFE_NO_PAD.encode(read(&policy_file)?);
            let body = json!({ "type": language, "policy_id": id, "policy": policy }).to_string();
            let done = format!("set attestation policy {id}");
            change(Method::POST, "attestation-policy", body.into_bytes(), done).await
        }
        Command::ListResourcePolicies => print("resource-policy").await,
        Command::GetResourcePolicy(policy) => print(&policy.path("resource-policy")).await,
        Command::RollbackResourcePolicy(Rollback { id, version }) => {
            let path = format!("resource-policy/{id}?rollback={version}");
            change(Method::POST, &path, Vec::new(), format!("resource policy {id} is as it was at {version}")).await
        }
        Command::DeleteResourcePolicy { id } => {
            change(Method::DELETE, &format!("resource-policy/{id}"), Vec::new(), format!("deleted {id}")).await
        }
        Command::ListAttestationPolicies => print("attestation-policy").await,
        Command::GetAttestationPolicy(policy) => print(&policy.path("attestation-policy")).await,
        Command::RollbackAttestationPolicy(Rollback { id, version }) => {
            let path = format!("attestation-policy/{id}?rollback={version}");
            change(Method::POST, &path, Vec::new(), format!("attestation policy {id} is as it was at {version}")).await
        }
        Command::DeleteAttestationPolicy { id } => {
            change(Method::DELETE, &format!("attestation-policy/{id}"), Vec::new(), format!("deleted {id}")).await
        }
        Command::SetSampleReferenceValue { name, value, as_integer, as_bool, as_single_value } => {
            let value = typed(value, as_integer, as_bool)?;
            let message = message(&name, if as_single_value { value } else { json!([value]) });
            let body = serde_json::to_vec(&message)?;
            change(Method::POST, "reference-value", body, format!("registered {name}")).await
        }
        Command::RegisterReferenceValues { message_file, signing_key_file } => {
            let mut message: Message = serde_json::from_slice(&read(&message_file)?).map_err(|e| {
                format!("{} is no message: {e}; next: give version, type and payload in JSON", message_file.display())
            })?;
            if let Some(key) = signing_key_file {
                message = signed(message, &key)?;
            }
            let done = format!("registered the values of {}", message_file.display());
            change(Method::POST, "reference-value", serde_json::to_vec(&message)?, done).await
        }
        Command::GetReferenceValue { id, history } => {
            print(&format!("reference-value/{id}{}", if history { "?history" } else { "" })).await
        }
        Command::ListReferenceValues => print("reference-value").await,
        Command::DeleteReferenceValue { id } => {
            change(Method::DELETE, &format!("reference-value/{id}"), Vec::new(), format!("deleted {id}")).await
        }
    }
}

/// What a command ended with.
pub enum Report {
    /// Something was changed, and has a new ETag.
    Done { done: String, etag: Option<String> },
    /// The Trustee's answer, in JSON or as text.
    Answer(Vec<u8>),
}

impl Report {
    /// Prints it for a person, or as one JSON document for a program.
    pub fn print(&self, as_json: bool) {
        match (self, as_json) {
            (Self::Done { done, etag: Some(etag) }, false) => println!("{done} (ETag {etag})"),
            (Self::Done { done, etag: None }, false) => println!("{done}"),
            (Self::Done { done, etag }, true) => println!("{}", json!({ "done": done, "etag": etag })),
            (Self::Answer(answer), as_json) => {
                let text = String::from_utf8_lossy(answer);
                match (serde_json::from_slice(answer), as_json) {
                    // A list of names is read best one to a line.
                    (Ok(Value::Array(items)), false) if items.iter().all(Value::is_string) => {
                        items.iter().filter_map(Value::as_str).for_each(|name| println!("{name}"));
                    }
                    (Err(_), true) => println!("{}", Value::from(text)),
                    _ => println!("{text}"),
                }
            }
        }
    }
}

impl OldPolicy {
    fn path(&self, kind: &str) -> String {
        match (&self.version, self.history) {
            (Some(version), _) => format!("{kind}/{}?version={version}", self.id),
            (None, true) => format!("{kind}/{}?history", self.id),
            (None, false) => format!("{kind}/{}", self.id),
        }
    }
}

impl ResourcePolicy {
    fn path(&self) -> String {
        match &self.tenant {
            Some(tenant) => format!("resource-policy/{tenant}"),
            None => "resource-policy".to_owned(),
        }
    }

    fn text(&self) -> Result<Vec<u8>, String> {
        let chosen = [(self.allow_all, ALLOW_ALL), (self.deny_all, DENY_ALL), (self.affirming, AFFIRMING)];
        match &self.policy_file {
            Some(path) => read(path),
            None => Ok(chosen.into_iter().find_map(|(on, text)| on.then_some(text)).unwrap_or(DEFAULT).into()),
        }
    }
}

fn typed(value: String, as_integer: bool, as_bool: bool) -> Result<Value, String> {
    match (as_integer, as_bool) {
        (true, _) => value
            .parse::<i64>()
            .map(Value::from)
            .map_err(|e| format!("--as-integer {value:?}: {e}; next: give an integer")),
        (_, true) => value
            .parse::<bool>()
            .map(Value::from)
            .map_err(|e| format!("--as-bool {value:?}: {e}; next: give true or false")),
        _ => Ok(Value::from(value)),
    }
}

fn signed(message: Message, key: &Path) -> Result<Message, String> {
    let unusable = |cause: &dyn std::fmt::Display| {
        format!(
            "{} can't sign: {cause}; next: give a private key in PKCS#8 PEM: Ed25519, EC P-256 or P-384",
            key.display()
        )
    };
    let text = Zeroizing::new(String::from_utf8(read(key)?).map_err(|e| unusable(&e.utf8_error()))?);
    sign_message(&message, &text).map_err(|e| unusable(&e))
}

fn message(name: &str, value: Value) -> Message {
    Message::new("sample", json!({ name: value }).to_string().as_bytes())
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
