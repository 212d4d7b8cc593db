//! Which keys sealed secrets may be signed with.
//!
//! A sealed secret passes through the cluster, so whoever controls that can leave it out, give a container another one
//! of the same owner, or an older one: it is bound to its key, not to a pod. What it can't do is to make one up, or to
//! name a key of its own: only keys that the owner has named count. Which guest gets what a sealed secret stands for is
//! up to the broker's resource policy, as for any resource.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use wire::resource::ResourceUri;
use wire::sealed_secret::{KeyId, VerifyingKey};
use zeroize::Zeroizing;

use crate::broker::Broker;
use crate::config::{CdhConfig, ConfigError, FOLDER};
use crate::error::Error;

/// The owner's word on keys. A secret comes by way of the cluster, so the name of its key is nobody's word.
pub(crate) struct Anchors {
    /// Where files with keys are.
    folder: PathBuf,
    listed: Option<Vec<Anchor>>,
}

enum Anchor {
    /// A key that is fetched by its name.
    Named(KeyId),
    /// A key that stands in the configuration.
    Given { kid: String, key: VerifyingKey },
}

impl Anchors {
    /// What the configuration says.
    pub(crate) fn new(config: &CdhConfig) -> Result<Self, ConfigError> {
        let listed = config.sealed_secret.trust_anchors.as_ref();
        let listed = listed.map(|listed| listed.iter().map(|text| Anchor::parse(text)).collect()).transpose()?;
        Ok(Self { folder: config.places.sealed_secret(), listed })
    }

    /// The key that a secret names as `kid`.
    ///
    /// # Errors
    /// [`Error::Anchor`] if the owner has not named it; otherwise why it can't be had.
    pub(crate) async fn key(&self, kid: &KeyId, broker: &Broker) -> Result<VerifyingKey, Error> {
        if let Some(given) = self.check(kid)? {
            return Ok(given);
        }
        let failed = |cause: Error| Error::VerificationKey { kid: kid.to_string(), cause: Box::new(cause) };
        let jwk = match kid {
            KeyId::Resource(uri) => broker.resource(uri).await.map_err(failed)?,
            KeyId::File(name) => read(&self.folder, name).await.map_err(failed)?,
        };
        VerifyingKey::parse(&jwk).map_err(|e| failed(e.into()))
    }

    /// The key itself if the configuration holds it.
    fn check(&self, kid: &KeyId) -> Result<Option<VerifyingKey>, Error> {
        let refused = |allowed: &str| Err(Error::Anchor { kid: kid.to_string(), allowed: allowed.to_owned() });
        let Some(listed) = &self.listed else {
            return if is_meant_for_this(kid) { Ok(None) } else { refused(UNLISTED) };
        };
        for anchor in listed {
            match anchor {
                Anchor::Named(anchor) if anchor == kid => return Ok(None),
                Anchor::Given { kid: anchor, key } if *anchor == kid.to_string() => return Ok(Some(key.clone())),
                _ => {}
            }
        }
        refused("those in sealed_secret.trust_anchors of cdh.toml")
    }
}

impl Anchor {
    fn parse(text: &str) -> Result<Self, ConfigError> {
        #[derive(Deserialize)]
        struct Named {
            kid: String,
        }
        if text.trim_start().starts_with('{') {
            let key = VerifyingKey::parse(text.as_bytes()).map_err(|e| ConfigError::Anchor(e.to_string()))?;
            let named: Named = serde_json::from_str(text)
                .map_err(|_| ConfigError::Anchor("the JWK has no kid, by which secrets name it".to_owned()))?;
            return Ok(Self::Given { kid: named.kid, key });
        }
        let name = match text.strip_prefix(FOLDER).and_then(|rest| rest.strip_prefix("/sealed-secret/")) {
            Some(name) => name,
            None => text,
        };
        KeyId::parse(name).map(Self::Named).map_err(|e| ConfigError::Anchor(e.to_string()))
    }
}

/// True for a key whose place says that its owner means it to sign secrets: any resource that a guest can read could
/// otherwise pass for one, down to what workloads themselves have stored.
fn is_meant_for_this(kid: &KeyId) -> bool {
    match kid {
        KeyId::File(_) => true,
        KeyId::Resource(ResourceUri { plugin, path, query }) => {
            let segments: Vec<&str> = path.split('/').collect();
            plugin == "resource" && query.is_none() && matches!(segments[..], [_, SIGNING_KEY, _])
        }
    }
}

/// Reads a key's file, which no link may lead away from its folder.
async fn read(folder: &Path, name: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
    let (folder, path) = (folder.to_owned(), folder.join(name));
    let outcome = tokio::task::spawn_blocking(move || {
        let failed = |cause: std::io::Error| Error::KeyFile { path: path.clone(), cause };
        let real = path.canonicalize().map_err(failed)?;
        if !real.starts_with(folder.canonicalize().map_err(failed)?) {
            return Err(failed(std::io::Error::other("it is a link to somewhere else")));
        }
        let mut jwk = Zeroizing::new(Vec::new());
        std::fs::File::open(real).and_then(|file| file.take(MAX_KEY).read_to_end(&mut jwk)).map_err(failed)?;
        Ok(jwk)
    });
    outcome.await.unwrap_or_else(|e| Err(Error::Interrupted(e.to_string())))
}

/// The type of resources that may verify secrets where the configuration lists none.
const SIGNING_KEY: &str = "signing-key";
const UNLISTED: &str =
    "resources of the type signing-key (kbs:///repository/signing-key/tag) and files of the folder for such keys";
const MAX_KEY: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SealedSecretConfig;
    use wire::sealed_secret::SealingKey;

    #[test]
    fn without_a_list_a_key_is_known_by_its_place() {
        let anchors = anchors(None).unwrap();
        for (kid, good) in [
            ("kbs:///default/signing-key/sealed-secret", true),
            ("kbs://host/tenant/signing-key/1", true),
            ("my-key", true),
            ("kbs:///default/key/1", false),
            ("kbs:///signing-key/x/1", false),
            ("kbs:///default/signing-key/1/2", false),
            ("kbs:///default/signing-key/1?version=2", false),
            ("kbs+pkcs11:///default/signing-key/1", false),
        ] {
            let outcome = anchors.check(&KeyId::parse(kid).unwrap());
            assert_eq!(outcome.is_ok(), good, "{kid}");
            if let Err(error) = outcome {
                assert!(error.to_string().contains("; next: "), "{error}");
            }
        }
    }

    #[test]
    fn a_list_is_all_there_is() {
        let key = SealingKey::generate().unwrap();
        let given = String::from_utf8(key.public_jwk(Some("mine"))).unwrap();
        let listed = ["kbs:///a/key/1", "/run/confidential-containers/cdh/sealed-secret/f1", "f2", &given];
        let anchors = anchors(Some(&listed)).unwrap();
        for (kid, good) in [
            ("kbs:///a/key/1", true),
            ("kbs://anywhere/a/key/1", true),
            ("f1", true),
            ("f2", true),
            ("mine", true),
            ("f3", false),
            ("kbs:///default/signing-key/1", false),
        ] {
            assert_eq!(anchors.check(&KeyId::parse(kid).unwrap()).is_ok(), good, "{kid}");
        }
        assert!(anchors.check(&KeyId::parse("mine").unwrap()).unwrap().is_some());
        assert!(self::anchors(Some(&[])).unwrap().check(&KeyId::parse("f1").unwrap()).is_err());
    }

    #[test]
    fn an_anchor_that_names_no_key_is_refused() {
        let nameless = String::from_utf8(SealingKey::generate().unwrap().public_jwk(None)).unwrap();
        for (text, reason) in [
            ("/etc/key", "/etc/key"),
            ("https://x/y", "https://x/y"),
            ("{}", "JWK"),
            (&nameless, "no kid"),
            ("", "\"\""),
        ] {
            let error = anchors(Some(&[text])).err().unwrap().to_string();
            assert!(error.contains("trust_anchors") && error.contains(reason), "{text:?} gave {error:?}");
        }
    }

    #[tokio::test]
    async fn a_keys_file_is_no_way_out_of_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("keys");
        std::fs::create_dir(&keys).unwrap();
        std::fs::write(folder.path().join("outside"), "secret").unwrap();
        std::fs::write(keys.join("inside"), "key").unwrap();
        std::os::unix::fs::symlink("../outside", keys.join("link")).unwrap();

        assert_eq!(*read(&keys, "inside").await.unwrap(), b"key");
        for name in ["link", "absent"] {
            assert!(matches!(read(&keys, name).await, Err(Error::KeyFile { .. })), "{name}");
        }
    }

    fn anchors(listed: Option<&[&str]>) -> Result<Anchors, ConfigError> {
        let trust_anchors = listed.map(|listed| listed.iter().map(|text| (*text).to_owned()).collect());
        Anchors::new(&CdhConfig { sealed_secret: SealedSecretConfig { trust_anchors }, ..CdhConfig::default() })
    }
}
