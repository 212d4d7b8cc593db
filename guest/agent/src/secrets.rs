//! Sealed secrets in the environment of a process: opened after the policy has decided, so that it never sees them.

use async_trait::async_trait;
use futures::future::try_join_all;
use zeroize::Zeroizing;

/// Opens sealed secrets.
#[async_trait]
pub trait Secrets: Send + Sync {
    /// The secret that a text which starts with `sealed.` stands for.
    async fn unseal(&self, sealed: &str) -> Result<Zeroizing<Vec<u8>>, SecretError>;
}

/// Why a secret can't be had: stage, cause and next step, fit for the host to read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SecretError(pub String);

/// Puts the secret in the place of each value of the environment that starts with `sealed.`.
///
/// # Errors
/// [`SecretError`] that names the variable.
pub(crate) async fn open_all(environment: &mut [String], secrets: Option<&dyn Secrets>) -> Result<(), SecretError> {
    let sealed: Vec<&mut String> = environment.iter_mut().filter(|entry| sealed(entry).is_some()).collect();
    if sealed.len() > MAX_SEALED {
        return Err(SecretError(format!("environment: more than {MAX_SEALED} sealed secrets; next: use fewer")));
    }
    try_join_all(sealed.into_iter().map(|entry| open(entry, secrets))).await?;
    Ok(())
}

async fn open(entry: &mut String, secrets: Option<&dyn Secrets>) -> Result<(), SecretError> {
    let Some((name, sealed)) = sealed(entry) else { return Ok(()) };
    let shown: String = name.chars().take(64).flat_map(char::escape_default).collect();
    let failed = |cause: &dyn std::fmt::Display| SecretError(format!("environment variable {shown}: {cause}"));
    let secrets = secrets.ok_or_else(|| failed(&"this guest opens no sealed secrets; next: leave it out"))?;
    let secret = secrets.unseal(sealed).await.map_err(|e| failed(&e))?;
    let secret = std::str::from_utf8(&secret).ok().filter(|text| !text.contains('\0'));
    let secret = secret.ok_or_else(|| failed(&"the secret is not a text without NUL; next: use a text"))?;
    *entry = format!("{name}={secret}");
    Ok(())
}

/// Name and value of a variable, if the value is sealed.
fn sealed(entry: &str) -> Option<(&str, &str)> {
    entry.split_once('=').filter(|(_, value)| value.starts_with(PREFIX))
}

const PREFIX: &str = "sealed.";
const MAX_SEALED: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sealed_values_are_opened_and_others_left() {
        let env = ["A=sealed.a", "B=plain", "C=xsealed.b", "D=sealed.b", "sealed.a=x", "sealed.a", "E="];
        let mut env = env.map(str::to_owned);
        open_all(&mut env, Some(&Known)).await.unwrap();
        let expected = ["A=secret of a", "B=plain", "C=xsealed.b", "D=secret of b", "sealed.a=x", "sealed.a", "E="];
        assert_eq!(env, expected);
        open_all(&mut [], None).await.unwrap();
    }

    #[tokio::test]
    async fn what_can_not_be_opened_names_its_variable() {
        let many = vec!["A=sealed.a"; MAX_SEALED + 1];
        for (env, secrets, reason) in [
            (&["A=sealed.a", "B=sealed.none"][..], Some(&Known), "variable B: there is none"),
            (&["A=sealed.binary"], Some(&Known), "variable A: the secret is not a text"),
            (&["A=sealed.nul"], Some(&Known), "variable A: the secret is not a text"),
            (&["A=sealed.a"], None, "variable A: this guest opens no sealed secrets"),
            (&many, Some(&Known), "more than 256"),
        ] {
            let secrets = secrets.map(|secrets| secrets as &dyn Secrets);
            let mut env: Vec<String> = env.iter().map(|entry| (*entry).to_owned()).collect();
            let error = open_all(&mut env, secrets).await.unwrap_err().to_string();
            assert!(error.starts_with("environment") && error.contains(reason), "{error}");
        }
    }

    struct Known;

    #[async_trait]
    impl Secrets for Known {
        async fn unseal(&self, sealed: &str) -> Result<Zeroizing<Vec<u8>>, SecretError> {
            let secret = match sealed {
                "sealed.none" => return Err(SecretError("there is none".to_owned())),
                "sealed.binary" => vec![0xff],
                "sealed.nul" => vec![0],
                name => name.replace("sealed.", "secret of ").into_bytes(),
            };
            Ok(Zeroizing::new(secret))
        }
    }
}
