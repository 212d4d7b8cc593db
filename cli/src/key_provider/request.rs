//! What an encrypter asks of a key provider: ocicrypt's `keywrap` request in JSON.
//!
//! Go's ocicrypt (skopeo, buildah, nerdctl) sends bytes in base64; ocicrypt in Rust sends the layer's options as plain
//! text and bytes as arrays of integers. Both are read.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use wire::layer::{PROVIDER, PrivateOptions};
use wire::resource::ResourceUri;
use zeroize::Zeroizing;

use crate::kek::Algorithm;

/// One layer whose key is to be wrapped.
pub(super) struct Request {
    /// The layer's private options, in JSON as they came.
    pub(super) options: Zeroizing<Vec<u8>>,
    /// The compressed layer's digest, for people.
    pub(super) digest: String,
    /// With which key.
    pub(super) parameters: Parameters,
}

impl Request {
    /// Reads the JSON form.
    ///
    /// # Errors
    /// [`Error`], a variant per cause. What was read is repeated only where it is a parameter's.
    pub(super) fn parse(json: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Document {
            keywrapparams: KeyWrap,
        }
        #[derive(Deserialize)]
        struct KeyWrap {
            ec: Option<EncryptConfig>,
            optsdata: Octets,
        }
        #[derive(Deserialize)]
        struct EncryptConfig {
            #[serde(rename = "Parameters")]
            parameters: Option<HashMap<String, Option<Vec<Octets>>>>,
        }
        let malformed = |e: serde_json::Error| Error::Request { line: e.line(), column: e.column() };
        let document: Document = serde_json::from_slice(json).map_err(malformed)?;
        let options = match document.keywrapparams.optsdata.0 {
            json if json.trim_ascii_start().starts_with(b"{") => json,
            base64 => Zeroizing::new(STANDARD.decode(&*base64).map_err(|_| Error::Options)?),
        };
        let digest = PrivateOptions::parse(&options).map_err(|_| Error::Options)?.digest().to_owned();

        let mut all = document.keywrapparams.ec.and_then(|config| config.parameters).unwrap_or_default();
        let parameters = match all.remove(PROVIDER).flatten().unwrap_or_default().as_slice() {
            [] => Parameters::default(),
            [only] => Parameters::parse(&only.text()?)?,
            several => return Err(Error::Several(several.len())),
        };
        Ok(Self { options, digest, parameters })
    }
}

/// The key to wrap with: `keyid=…::keypath=…::algorithm=…`, or `sample=true`.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Parameters {
    /// With the key that everybody knows.
    pub(super) sample: bool,
    /// The name under which guests ask for the key.
    pub(super) key_id: Option<ResourceUri>,
    /// The file that holds it.
    pub(super) key_path: Option<PathBuf>,
    /// How it wraps.
    pub(super) algorithm: Algorithm,
}

impl Parameters {
    fn parse(text: &str) -> Result<Self, Error> {
        let mut parameters = Self::default();
        // What Go's ocicrypt says for a provider without parameters.
        if matches!(text, "" | "Enabled") {
            return Ok(parameters);
        }
        let mut seen = Vec::new();
        for parameter in text.split("::") {
            let (name, value) = parameter.split_once('=').ok_or_else(|| Error::Form(excerpt(parameter)))?;
            if seen.contains(&name) {
                return Err(Error::Twice(excerpt(name)));
            }
            seen.push(name);
            let refused = |expected| Error::Value { name: excerpt(name), value: excerpt(value), expected };
            match name {
                "sample" => parameters.sample = value.parse().map_err(|_| refused("true or false"))?,
                "keyid" => parameters.key_id = Some(key_id(value).ok_or_else(|| refused(KEY_ID))?),
                "keypath" if value.is_empty() => return Err(refused("the path of a file of 32 bytes")),
                "keypath" => parameters.key_path = Some(PathBuf::from(value)),
                "algorithm" => {
                    parameters.algorithm = Algorithm::of_name(value).ok_or_else(|| refused("A256GCM or A256CTR"))?;
                }
                _ => return Err(Error::Unknown(excerpt(name))),
            }
        }
        if parameters.sample && (parameters.key_id.is_some() || parameters.key_path.is_some()) {
            return Err(Error::Sample);
        }
        Ok(parameters)
    }
}

/// A URI, or a path as upstream's key provider takes it too.
fn key_id(text: &str) -> Option<ResourceUri> {
    match text.contains("://") {
        true => ResourceUri::parse(text).ok(),
        false => ResourceUri::parse(&format!("kbs:///{}", text.trim_start_matches('/'))).ok(),
    }
}

/// Bytes: a string, or an array of integers.
struct Octets(Zeroizing<Vec<u8>>);

impl Octets {
    /// A parameter's text, which Go sends in base64.
    fn text(&self) -> Result<String, Error> {
        let text = std::str::from_utf8(&self.0).map_err(|_| Error::Form(String::new()))?;
        // Every parameter has a "=" before its end, which base64 has not.
        let decoded = STANDARD.decode(text).ok().and_then(|decoded| String::from_utf8(decoded).ok());
        Ok(decoded.unwrap_or_else(|| text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Octets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OctetsVisitor)
    }
}

struct OctetsVisitor;

impl<'de> Visitor<'de> for OctetsVisitor {
    type Value = Octets;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or an array of bytes")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Octets, E> {
        Ok(Octets(Zeroizing::new(text.as_bytes().to_vec())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Octets, A::Error> {
        // Of a size that is never outgrown, so that no copy of a key stays behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_OCTETS));
        while let Some(byte) = sequence.next_element()? {
            if bytes.len() == MAX_OCTETS {
                return Err(A::Error::custom("too many bytes"));
            }
            bytes.push(byte);
        }
        Ok(Octets(bytes))
    }
}

/// Why a layer's key is not wrapped as asked.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error(
        "the request is no ocicrypt keywrap request (line {line}, column {column}); next: encrypt with a tool that speaks ocicrypt's key provider protocol, such as skopeo"
    )]
    Request { line: usize, column: usize },
    #[error(
        "the request's optsdata are not a layer's private options; next: encrypt with AES_256_CTR_HMAC_SHA256, the one cipher that guests know"
    )]
    Options,
    #[error("there are {0} parameter lists; next: give --encryption-key provider:{PROVIDER}:… once")]
    Several(usize),
    #[error("the parameter \"{0}\" is not NAME=VALUE; next: write keyid=kbs:///a/b/c::keypath=FILE::algorithm=A256GCM")]
    Form(String),
    #[error("the parameter {0} is given twice; next: leave one out")]
    Twice(String),
    #[error("there is no parameter \"{0}\"; next: use keyid, keypath, algorithm or sample")]
    Unknown(String),
    #[error("the parameter {name} can't be \"{value}\"; next: give {expected}")]
    Value { name: String, value: String, expected: &'static str },
    #[error("sample=true names a key that everybody knows; next: leave out keyid and keypath, or sample")]
    Sample,
}

fn excerpt(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}

const KEY_ID: &str = "a resource such as kbs:///default/key/app";
/// A layer's private options have about 200 bytes.
const MAX_OCTETS: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const OPTIONS: &str = r#"{"symkey":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","digest":"sha256:00","cipheroptions":{"nonce":"AAAAAAAAAAAAAAAAAAAAAA=="}}"#;

    fn request(parameters: Value, options: Value) -> Result<Request, Error> {
        let ec = json!({ "Parameters": parameters, "DecryptConfig": { "Parameters": null } });
        let request = json!({
            "op": "keywrap",
            "keywrapparams": { "ec": ec, "optsdata": options },
            "keyunwrapparams": { "dc": null, "annotation": null },
        });
        Request::parse(request.to_string().as_bytes())
    }

    fn with(parameters: &str) -> Result<Parameters, Error> {
        request(json!({ PROVIDER: [STANDARD.encode(parameters)] }), OPTIONS.into()).map(|request| request.parameters)
    }

    #[test]
    fn what_go_and_rust_send_is_the_same_request() {
        let parameters = "keyid=kbs:///a/b/c::keypath=/k";
        let (bytes, options) = (parameters.as_bytes().to_vec(), OPTIONS.as_bytes().to_vec());
        for (parameters, options) in [
            (json!([STANDARD.encode(parameters)]), json!(STANDARD.encode(OPTIONS))),
            (json!([parameters]), json!(OPTIONS)),
            (json!([bytes]), json!(options)),
        ] {
            let request = request(json!({ PROVIDER: parameters, "other": ["eA=="] }), options).unwrap();

            assert_eq!(*request.options, OPTIONS.as_bytes());
            assert_eq!(request.digest, "sha256:00");
            assert_eq!(request.parameters.key_id, ResourceUri::parse("kbs:///a/b/c").ok());
            assert_eq!(request.parameters.key_path, Some("/k".into()));
        }
    }

    #[test]
    fn empty_parameters_are_parameters() {
        for parameters in [json!({}), json!(null), json!({ PROVIDER: null }), json!({ PROVIDER: [] })] {
            assert_eq!(request(parameters, OPTIONS.into()).unwrap().parameters, Parameters::default());
        }
        for text in ["", "Enabled"] {
            assert_eq!(with(text).unwrap(), Parameters::default());
        }
        let no_config = json!({ "keywrapparams": { "ec": null, "optsdata": OPTIONS } }).to_string();
        assert_eq!(Request::parse(no_config.as_bytes()).unwrap().parameters, Parameters::default());
    }

    #[test]
    fn every_parameter_is_read() {
        let parameters = with("keyid=kbs:///a/b/c::algorithm=A256CTR").unwrap();
        assert_eq!(parameters.algorithm, Algorithm::A256Ctr);
        assert!(with("sample=true").unwrap().sample && !with("sample=false::keyid=/a/b/c").unwrap().sample);
        for form in ["kbs:///a/b/c", "kbs://broker:8080/a/b/c", "/a/b/c", "a/b/c", "kbs+resource:///a/b/c"] {
            let key_id = with(&format!("keyid={form}")).unwrap().key_id.unwrap();
            assert_eq!(key_id.to_string(), "kbs:///a/b/c", "{form}");
        }
    }

    #[test]
    fn a_refusal_names_the_parameter_and_what_to_do() {
        for (parameters, reason) in [
            ("keyid", "\"keyid\" is not NAME=VALUE"),
            ("keyid=/a/b/c::", "\"\" is not NAME=VALUE"),
            ("keyid=/a/b/c::keyid=/a/b/d", "keyid is given twice"),
            ("keyid=http://a/b/c", "keyid can't be"),
            ("keyid=", "keyid can't be \"\""),
            ("keypath=", "the path of a file"),
            ("algorithm=A128GCM", "A256GCM or A256CTR"),
            ("sample=yes", "true or false"),
            ("sample=true::keypath=k", "everybody knows"),
            ("kid=/a/b/c", "no parameter \"kid\""),
        ] {
            let error = with(parameters).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("; next: "), "{parameters:?} gave {error:?}");
        }
        let twice = request(json!({ PROVIDER: ["eA==", "eA=="] }), OPTIONS.into()).err();
        assert_eq!(twice, Some(Error::Several(2)));
    }

    #[test]
    fn options_that_are_none_are_refused_and_not_repeated() {
        for options in [json!("secret"), json!("{\"symkey\":\"secret\"}"), json!([123, 125]), json!("")] {
            let error = request(json!({}), options).err().unwrap();
            assert_eq!(error, Error::Options);
            assert!(!error.to_string().contains("secret"));
        }
        assert!(matches!(request(json!({}), json!(7)).err(), Some(Error::Request { .. })));
        assert!(matches!(request(json!({}), json!([256])).err(), Some(Error::Request { .. })));
        assert!(matches!(Request::parse(b"{}").err(), Some(Error::Request { .. })));
    }

    proptest! {
        #[test]
        fn no_request_makes_it_panic(text in "\\PC{0,200}", parameters in "\\PC{0,80}") {
            let _ = Request::parse(text.as_bytes());
            let _ = with(&parameters);
            let _ = request(json!({ PROVIDER: [parameters] }), text.into());
        }
    }
}
