//! The policy as its owner writes it: scopes, and for each a list of requirements.
//!
//! Source: containers-policy.json(5). Only the transport `docker` is ever looked up in a guest; lists of the other
//! transports are parsed, so that a mistake in them is found, and then left alone.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use oci_spec::distribution::Reference;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, de};

use crate::error::{Error, Failure};
use crate::identity::SignedIdentity;
use crate::lookaside::Lookaside;
use crate::scope;
use crate::sources::SignatureSources;

/// Who must have signed which images.
///
/// A registry goes by many names (with a port, in capitals, by its address), and each is a scope of its own. So what
/// `default` says is what an image under a name that nobody thought of needs: it should be `reject`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    default: Vec<Requirement>,
    #[serde(default)]
    transports: Unique<Unique<Vec<Requirement>>>,
    #[serde(skip)]
    pub(crate) lookaside: Lookaside,
}

impl Policy {
    /// Parses a `containers-policy.json`. It may consist of `default` alone.
    ///
    /// # Errors
    /// [`Error::Document`] for anything that is not such a policy: an unknown requirement, an unknown or repeated key,
    /// a key that is given twice or not at all.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let failed = |cause: String| Error::Document { what: "image policy", cause };
        if json.len() > MAX_POLICY {
            return Err(failed(format!("it is larger than {MAX_POLICY} bytes")));
        }
        serde_json::from_slice(json).map_err(|e| failed(e.to_string()))
    }

    /// Says where simple signatures lie: a `containers-registries.d(5)` document. Without it `signedBy` is never met.
    ///
    /// # Errors
    /// [`Error::Document`] for anything that is not such a document.
    pub fn with_lookaside(mut self, yaml: &[u8]) -> Result<Self, Error> {
        let parsed = Lookaside::parse(yaml);
        self.lookaside = parsed.map_err(|cause| Error::Document { what: "sigstore configuration", cause })?;
        Ok(self)
    }

    /// Whether no image needs a signature, because every list accepts anything or rejects.
    pub fn needs_no_signature(&self) -> bool {
        let docker = self.transports.0.get(DOCKER);
        let lists = docker.into_iter().flat_map(|scopes| scopes.0.values()).chain([&self.default]);
        lists.flatten().all(|it| matches!(it, Requirement::InsecureAcceptAnything {} | Requirement::Reject {}))
    }

    /// The requirements for an image, and the place in the policy where they stand.
    pub(crate) fn requirements(&self, reference: &Reference) -> (String, &[Requirement]) {
        if let Some(docker) = self.transports.0.get(DOCKER) {
            for candidate in scope::candidates(reference) {
                if let Some(list) = docker.0.get(&candidate) {
                    return (format!("scope {candidate}"), list);
                }
            }
            if let Some(list) = docker.0.get("") {
                return ("the transport docker's default scope".to_owned(), list);
            }
        }
        ("the policy's default".to_owned(), &self.default)
    }
}

/// What an image must fulfil. All requirements of a list must be met.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
pub(crate) enum Requirement {
    InsecureAcceptAnything {},
    Reject {},
    SignedBy(SignedBy),
    SigstoreSigned(SigstoreSigned),
}

impl Requirement {
    /// The `type` that the policy gives.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::InsecureAcceptAnything {} => "insecureAcceptAnything",
            Self::Reject {} => "reject",
            Self::SignedBy(_) => "signedBy",
            Self::SigstoreSigned(_) => "sigstoreSigned",
        }
    }
}

/// A simple signature by an OpenPGP key.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "SignedByFields")]
pub(crate) struct SignedBy {
    /// Key rings; a key of any will do.
    pub(crate) keys: Vec<Material>,
    pub(crate) identity: SignedIdentity,
}

/// A signature in sigstore's form.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "SigstoreFields")]
pub(crate) struct SigstoreSigned {
    pub(crate) signer: Signer,
    /// The transparency log's keys. With any the signature must be in the log.
    pub(crate) log_keys: Vec<Material>,
    /// `None` where only the digest is checked, as CoCo's guests do by default: what cosign signs names no tag.
    pub(crate) identity: Option<SignedIdentity>,
}

/// Who signed.
#[derive(Clone, Debug)]
pub(crate) enum Signer {
    /// The holder of one of these keys.
    Keys(Vec<Material>),
    /// Whom a certificate authority called so for the minutes in which the signature was made.
    Fulcio { authorities: Material, issuer: String, subject: String },
    /// Whom an own certificate authority called so.
    Pki { roots: Material, intermediates: Option<Material>, email: Option<String>, hostname: Option<String> },
}

/// A key, a key ring or certificates.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Material {
    /// To be fetched: a path, or a `file://` or `kbs://` URI.
    Uri(String),
    /// Given by the policy.
    Inline(Vec<u8>),
}

impl Material {
    pub(crate) async fn fetch(&self, sources: &dyn SignatureSources) -> Result<Vec<u8>, Failure> {
        match self {
            Self::Inline(bytes) => Ok(bytes.clone()),
            Self::Uri(uri) => {
                let fetched = sources.document(uri).await;
                fetched.map_err(|cause| Failure::Source { place: uri.clone(), cause })
            }
        }
    }
}

impl fmt::Display for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri(uri) => f.write_str(uri),
            Self::Inline(_) => f.write_str("the policy's own data"),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SignedByFields {
    key_type: String,
    key_path: Option<String>,
    key_paths: Option<Vec<String>>,
    key_data: Option<String>,
    signed_identity: Option<SignedIdentity>,
}

impl TryFrom<SignedByFields> for SignedBy {
    type Error = String;

    fn try_from(fields: SignedByFields) -> Result<Self, String> {
        if fields.key_type != "GPGKeys" {
            return Err(format!("keyType {:?} is not GPGKeys", fields.key_type));
        }
        let keys = [fields.key_path.map(one), fields.key_paths.map(many), fields.key_data.map(data)];
        Ok(Self {
            keys: exactly_one("signedBy needs one of keyPath, keyPaths and keyData", keys)?,
            identity: fields.signed_identity.unwrap_or(SignedIdentity::MatchRepoDigestOrExact {}),
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SigstoreFields {
    key_path: Option<String>,
    key_paths: Option<Vec<String>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    fulcio: Option<FulcioFields>,
    pki: Option<PkiFields>,
    rekor_public_key_path: Option<String>,
    rekor_public_key_paths: Option<Vec<String>>,
    rekor_public_key_data: Option<String>,
    rekor_public_key_datas: Option<Vec<String>>,
    signed_identity: Option<SignedIdentity>,
}

impl TryFrom<SigstoreFields> for SigstoreSigned {
    type Error = String;

    fn try_from(fields: SigstoreFields) -> Result<Self, String> {
        let keys = [
            fields.key_path.map(one),
            fields.key_paths.map(many),
            fields.key_data.map(data),
            fields.key_datas.map(datas),
        ];
        let keys = at_most_one("sigstoreSigned takes one of keyPath, keyPaths, keyData and keyDatas", keys)?;
        let log_keys = at_most_one(
            "sigstoreSigned takes one of rekorPublicKeyPath, -Paths, -Data and -Datas",
            [
                fields.rekor_public_key_path.map(one),
                fields.rekor_public_key_paths.map(many),
                fields.rekor_public_key_data.map(data),
                fields.rekor_public_key_datas.map(datas),
            ],
        )?;
        let signer = match (keys, fields.fulcio, fields.pki) {
            (Some(keys), None, None) => Signer::Keys(keys),
            (None, Some(_), None) if log_keys.is_none() => {
                return Err(
                    "fulcio needs a rekorPublicKey: only a log can tell when a short-lived certificate was used"
                        .to_owned(),
                );
            }
            (None, Some(fulcio), None) => fulcio.try_into()?,
            (None, None, Some(_)) if log_keys.is_some() => {
                return Err("pki and a rekorPublicKey don't go together".to_owned());
            }
            (None, None, Some(pki)) => pki.try_into()?,
            _ => return Err("sigstoreSigned needs exactly one of a key, fulcio and pki".to_owned()),
        };
        Ok(Self { signer, log_keys: log_keys.unwrap_or_default(), identity: fields.signed_identity })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FulcioFields {
    #[serde(rename = "caPath")]
    ca_path: Option<String>,
    #[serde(rename = "caData")]
    ca_data: Option<String>,
    #[serde(rename = "oidcIssuer")]
    oidc_issuer: String,
    #[serde(rename = "subjectEmail")]
    subject_email: String,
}

impl TryFrom<FulcioFields> for Signer {
    type Error = String;

    fn try_from(fields: FulcioFields) -> Result<Self, String> {
        let authorities = material("fulcio needs one of caPath and caData", fields.ca_path, fields.ca_data)?
            .ok_or("fulcio needs one of caPath and caData")?;
        if fields.oidc_issuer.is_empty() || fields.subject_email.is_empty() {
            return Err("fulcio needs an oidcIssuer and a subjectEmail".to_owned());
        }
        Ok(Self::Fulcio { authorities, issuer: fields.oidc_issuer, subject: fields.subject_email })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PkiFields {
    ca_roots_path: Option<String>,
    ca_roots_data: Option<String>,
    ca_intermediates_path: Option<String>,
    ca_intermediates_data: Option<String>,
    subject_email: Option<String>,
    subject_hostname: Option<String>,
}

impl TryFrom<PkiFields> for Signer {
    type Error = String;

    fn try_from(fields: PkiFields) -> Result<Self, String> {
        let roots =
            material("pki needs one of caRootsPath and caRootsData", fields.ca_roots_path, fields.ca_roots_data)?
                .ok_or("pki needs one of caRootsPath and caRootsData")?;
        let intermediates = material(
            "pki takes one of caIntermediatesPath and caIntermediatesData",
            fields.ca_intermediates_path,
            fields.ca_intermediates_data,
        )?;
        let named = |name: &Option<String>| name.as_ref().is_some_and(|name| !name.is_empty());
        if !named(&fields.subject_email) && !named(&fields.subject_hostname) {
            return Err("pki needs a subjectEmail or a subjectHostname".to_owned());
        }
        Ok(Self::Pki { roots, intermediates, email: fields.subject_email, hostname: fields.subject_hostname })
    }
}

type Given = Option<Result<Vec<Material>, String>>;

fn one(uri: String) -> Result<Vec<Material>, String> {
    many(vec![uri])
}

fn many(uris: Vec<String>) -> Result<Vec<Material>, String> {
    match uris.is_empty() || uris.iter().any(String::is_empty) {
        true => Err("a key's path is empty".to_owned()),
        false => Ok(uris.into_iter().map(Material::Uri).collect()),
    }
}

fn data(text: String) -> Result<Vec<Material>, String> {
    datas(vec![text])
}

/// containers/image has base64 here and CoCo's guests have bare PEM for sigstore; neither can be taken for the other.
fn datas(texts: Vec<String>) -> Result<Vec<Material>, String> {
    if texts.is_empty() {
        return Err("a key's data is empty".to_owned());
    }
    let decode = |text: String| match text.trim_start().starts_with("-----BEGIN ") {
        true => Ok(Material::Inline(text.into_bytes())),
        false => BASE64_STANDARD
            .decode(text.trim())
            .map(Material::Inline)
            .map_err(|e| format!("a key's data is neither PEM nor base64: {e}")),
    };
    texts.into_iter().map(decode).collect()
}

fn at_most_one<const N: usize>(rule: &str, given: [Given; N]) -> Result<Option<Vec<Material>>, String> {
    let mut given = given.into_iter().flatten();
    match (given.next(), given.next()) {
        (first, None) => first.transpose(),
        _ => Err(rule.to_owned()),
    }
}

fn exactly_one<const N: usize>(rule: &str, given: [Given; N]) -> Result<Vec<Material>, String> {
    at_most_one(rule, given)?.ok_or_else(|| rule.to_owned())
}

fn material(rule: &str, path: Option<String>, inline: Option<String>) -> Result<Option<Material>, String> {
    let given = at_most_one(rule, [path.map(one), inline.map(data)])?;
    Ok(given.and_then(|mut list| list.pop()))
}

/// A map in which no key stands twice, since of two lists for one scope the looser one could win.
#[derive(Clone, Debug)]
struct Unique<T>(BTreeMap<String, T>);

impl<T> Default for Unique<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<T>, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if entries.contains_key(&key) {
                        return Err(de::Error::custom(format_args!("{key:?} stands twice")));
                    }
                    let value = map.next_value().map_err(|e| A::Error::custom(format_args!("{key:?}: {e}")))?;
                    entries.insert(key, value);
                }
                Ok(Unique(entries))
            }
        }

        deserializer.deserialize_map(Entries(PhantomData))
    }
}

const DOCKER: &str = "docker";
/// Bounds what a policy can make the guest hold in memory; real ones have a few KiB.
const MAX_POLICY: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REJECT: &str = r#"[{"type":"reject"}]"#;
    const ACCEPT: &str = r#"[{"type":"insecureAcceptAnything"}]"#;

    fn policy(docker: &str) -> Policy {
        Policy::parse(format!(r#"{{"default":{REJECT},"transports":{{"docker":{docker}}}}}"#).as_bytes()).unwrap()
    }

    fn scope_of(policy: &Policy, reference: &str) -> String {
        policy.requirements(&reference.parse().unwrap()).0
    }

    fn refusal(requirement: &str) -> String {
        Policy::parse(format!(r#"{{"default":[{requirement}]}}"#).as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn the_most_specific_scope_counts() {
        let policy = policy(&format!(
            r#"{{"a.io/x:v1":{ACCEPT},"a.io/x":{REJECT},"a.io":{ACCEPT},"*.b.io":{REJECT},"":{ACCEPT}}}"#
        ));
        for (reference, scope) in [
            ("a.io/x:v1", "scope a.io/x:v1"),
            ("a.io/x:v2", "scope a.io/x"),
            ("a.io/x/y", "scope a.io/x"),
            ("a.io/xy", "scope a.io"),
            ("a.io:5000/x", "the transport docker's default scope"),
            ("r.b.io:5000/x", "scope *.b.io"),
            ("b.io/x", "the transport docker's default scope"),
        ] {
            assert_eq!(scope_of(&policy, reference), scope, "{reference}");
        }
    }

    #[test]
    fn a_policy_may_have_a_default_only() {
        let policy = Policy::parse(format!(r#"{{"default":{ACCEPT}}}"#).as_bytes()).unwrap();
        assert_eq!(scope_of(&policy, "a.io/x"), "the policy's default");
    }

    #[test]
    fn a_policy_says_whether_any_image_needs_a_signature() {
        let key = r#"[{"type":"sigstoreSigned","keyPath":"/k"}]"#;
        for (docker, needs_none) in [
            (format!(r#"{{"a.io":{ACCEPT},"b.io":{REJECT}}}"#), true),
            (format!(r#"{{"a.io":{ACCEPT},"b.io":{key}}}"#), false),
        ] {
            assert_eq!(policy(&docker).needs_no_signature(), needs_none, "{docker}");
        }
        assert!(!Policy::parse(format!(r#"{{"default":{key}}}"#).as_bytes()).unwrap().needs_no_signature());
    }

    #[test]
    fn scopes_of_other_transports_are_not_for_images_of_registries() {
        let policy = Policy::parse(
            format!(r#"{{"default":{REJECT},"transports":{{"dir":{{"":{ACCEPT}}},"atomic":{{"a.io":{ACCEPT}}}}}}}"#)
                .as_bytes(),
        );
        assert_eq!(scope_of(&policy.unwrap(), "a.io/x"), "the policy's default");
    }

    #[test]
    fn every_requirement_of_the_format_is_read() {
        let pem = "-----BEGIN PUBLIC KEY-----\\nAA==\\n-----END PUBLIC KEY-----\\n";
        for requirement in [
            r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}"#.to_owned(),
            r#"{"type":"signedBy","keyType":"GPGKeys","keyPaths":["/k","kbs:///a/b/c"]}"#.to_owned(),
            r#"{"type":"signedBy","keyType":"GPGKeys","keyData":"AAAA","signedIdentity":{"type":"matchExact"}}"#
                .to_owned(),
            r#"{"type":"sigstoreSigned","keyPath":"kbs:///a/b/c"}"#.to_owned(),
            format!(r#"{{"type":"sigstoreSigned","keyData":"{pem}"}}"#),
            r#"{"type":"sigstoreSigned","keyDatas":["AAAA","AAAA"],"rekorPublicKeyData":"AAAA"}"#.to_owned(),
            r#"{"type":"sigstoreSigned","fulcio":{"caData":"AAAA","oidcIssuer":"https://i","subjectEmail":"a@b"},
                "rekorPublicKeyPaths":["/k"],"signedIdentity":{"type":"matchRepository"}}"#
                .to_owned(),
            r#"{"type":"sigstoreSigned","pki":{"caRootsPath":"/ca","subjectEmail":"a@b"}}"#.to_owned(),
        ] {
            let policy = Policy::parse(format!(r#"{{"default":[{requirement}]}}"#).as_bytes()).unwrap();
            let kind = policy.default[0].kind();
            assert!(requirement.starts_with(&format!(r#"{{"type":"{kind}""#)), "{requirement}");
        }
    }

    #[test]
    fn key_data_is_base64_or_pem() {
        let pem = "-----BEGIN X-----\n";
        assert_eq!(data(pem.to_owned()).unwrap(), [Material::Inline(pem.as_bytes().to_vec())]);
        assert_eq!(data(BASE64_STANDARD.encode(pem)).unwrap(), [Material::Inline(pem.as_bytes().to_vec())]);
        assert!(data("no base64!".to_owned()).is_err());
    }

    #[test]
    fn what_is_not_a_policy_is_refused_with_its_reason() {
        for (requirement, reason) in [
            (r#"{"type":"signedByMagic"}"#, "signedByMagic"),
            (r#"{"type":"reject","keyPath":"/k"}"#, "keyPath"),
            (r#"{"type":"signedBy","keyType":"GPGKeys"}"#, "one of keyPath, keyPaths and keyData"),
            (r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","keyData":"AAAA"}"#, "one of keyPath"),
            (r#"{"type":"signedBy","keyType":"X509Certificates","keyPath":"/k"}"#, "X509Certificates"),
            (r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","keyring":"/k"}"#, "keyring"),
            (r#"{"type":"signedBy","keyType":"GPGKeys","keyPaths":[]}"#, "empty"),
            (r#"{"type":"signedBy","keyType":"GPGKeys","keyData":"!"}"#, "neither PEM nor base64"),
            (r#"{"type":"sigstoreSigned"}"#, "exactly one of a key, fulcio and pki"),
            (r#"{"type":"sigstoreSigned","keyPath":"/k","keyPath":"/l"}"#, "duplicate"),
            (
                r#"{"type":"sigstoreSigned","fulcio":{"caPath":"/c","oidcIssuer":"i","subjectEmail":"s"}}"#,
                "rekorPublicKey",
            ),
            (
                r#"{"type":"sigstoreSigned","rekorPublicKeyPath":"/r","fulcio":{"oidcIssuer":"i","subjectEmail":"s"}}"#,
                "caPath and caData",
            ),
            (r#"{"type":"sigstoreSigned","pki":{"caRootsPath":"/ca"}}"#, "subjectHostname"),
            (r#"{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"any"}}"#, "any"),
        ] {
            let refusal = refusal(requirement);
            assert!(refusal.contains(reason), "{requirement} gave {refusal:?}");
        }
    }

    #[test]
    fn a_scope_that_stands_twice_is_refused() {
        let text = format!(r#"{{"default":{REJECT},"transports":{{"docker":{{"a.io":{REJECT},"a.io":{ACCEPT}}}}}}}"#);
        assert!(Policy::parse(text.as_bytes()).unwrap_err().to_string().contains("stands twice"));
    }

    #[test]
    fn an_error_names_the_scope_in_which_it_is() {
        let text = format!(r#"{{"default":{REJECT},"transports":{{"docker":{{"a.io":[{{"type":"x"}}]}}}}}}"#);
        let error = Policy::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("\"a.io\"") && error.contains("next:"), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[\\[\\]{}:,\"a-z0-9 ]{0,200}") {
            let _ = Policy::parse(text.as_bytes());
        }
    }
}
