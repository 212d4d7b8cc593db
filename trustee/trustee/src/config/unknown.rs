//! What is wrong with a key, in words that help: where it is, what was meant, and never a secret's value.

use serde_path_to_error::{Path, Segment};

use super::section::{Key, Nested};

/// Says in one sentence why a value doesn't fit its key.
pub fn explain(error: &serde_path_to_error::Error<serde_json::Error>, known: &Nested) -> String {
    sentence(error.path(), &error.inner().to_string(), known)
}

fn sentence(path: &Path, message: &str, known: &Nested) -> String {
    let place = path.to_string();
    if let Some((name, candidates)) = unexpected(message, "unknown field") {
        let parent = match place.strip_suffix(&name) {
            Some(parent) => parent.trim_end_matches('.'),
            None => place.trim_matches('.'),
        };
        let full = |key: &str| if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") };
        let mut elsewhere = Vec::new();
        places(known, "", &name, &mut elsewhere);
        let meant = match nearest(&name, &candidates) {
            Some((key, _)) if elsewhere.is_empty() => format!("the nearest is {}", full(&key)),
            Some((key, likeness)) if likeness > LIKELY => format!("the nearest is {}", full(&key)),
            _ if !elsewhere.is_empty() => format!("it belongs to {}", elsewhere.join(" or ")),
            _ => "there is none here".to_owned(),
        };
        return format!("{} is no key: {meant}", full(&name));
    }
    if let Some((name, candidates)) = unexpected(message, "unknown variant") {
        let meant = nearest(&name, &candidates).map(|(value, _)| format!("; the nearest is {value:?}"));
        return format!("{place} can't be {name:?}{}: there are {}", meant.unwrap_or_default(), candidates.join(", "));
    }
    let secret = path.iter().any(|segment| matches!(segment, Segment::Map { key } if is_secret(key)));
    // The message quotes the value.
    let message = if secret { "it has the wrong type" } else { message };
    if place == "." { message.to_owned() } else { format!("{place}: {message}") }
}

/// The name that was not expected and those that were, from a message of serde's.
fn unexpected(message: &str, what: &str) -> Option<(String, Vec<String>)> {
    let mut quoted = message.strip_prefix(what)?.split('`').skip(1).step_by(2).map(str::to_owned);
    let name = quoted.next()?;
    Some((name, quoted.collect()))
}

fn nearest(name: &str, candidates: &[String]) -> Option<(String, f64)> {
    let likeness = |candidate: &String| strsim::jaro_winkler(&name.to_lowercase(), &candidate.to_lowercase());
    let best = candidates.iter().map(|candidate| (candidate, likeness(candidate)));
    best.max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(candidate, likeness)| (candidate.clone(), likeness))
}

/// Where else in the configuration a key of this name is.
fn places(known: &Nested, parent: &str, name: &str, found: &mut Vec<String>) {
    let (Nested::Section(keys) | Nested::List(keys)) = known else { return };
    for Key { name: key, nested, .. } in keys {
        let place = if parent.is_empty() { (*key).to_owned() } else { format!("{parent}.{key}") };
        if *key == name {
            found.push(place.clone());
        }
        places(nested, &place, name, found);
    }
}

fn is_secret(key: &str) -> bool {
    SECRETS.contains(&key)
}

const LIKELY: f64 = 0.9;
const SECRETS: [&str; 8] = ["password", "url", "api_key", "pin", "token", "client_key", "secret_id", "cert_pem"];
