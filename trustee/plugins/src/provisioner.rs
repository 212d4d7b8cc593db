//! `provisioner`: a disk key for each confidential virtual machine, given only to the machine whose initdata names it.
//!
//! Before a machine boots, its operator has a key made with `POST provision` and writes the key's path into the
//! machine's initdata. The machine fetches it with `GET default/<uuid>/root`, where the uuid follows from namespace and
//! name of the machine; so asking twice gives one key.

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use serde::Deserialize;
use serde_json::{Value, json};
use store::{If, Key, Namespace, Store};
use uuid::{Builder, Uuid};
use zeroize::Zeroizing;

use crate::{Access, Error, Output, Plugin, Request};

/// Settings of the plugin `provisioner`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Characters of a key, each of 62 kinds: 22 to 1024. 32 if not set.
    #[serde(default = "default_key_length")]
    pub key_length: usize,
}

pub(crate) struct Provisioner {
    store: Store,
    key_length: usize,
}

impl Provisioner {
    pub fn open(config: Config, store: Store) -> Result<Self, Error> {
        if !(MIN_KEY_LENGTH..=MAX_KEY_LENGTH).contains(&config.key_length) {
            let reason = format!("key_length must be {MIN_KEY_LENGTH} to {MAX_KEY_LENGTH}");
            return Err(Error::Config { plugin: NAME, reason });
        }
        Ok(Self { store, key_length: config.key_length })
    }

    async fn provision(&self, body: &[u8]) -> Result<Output, Error> {
        if body.len() > MAX_BODY {
            return Err(Error::TooLarge { plugin: NAME, limit: MAX_BODY });
        }
        let machine: Machine = serde_json::from_slice(body).map_err(|e| member("body", e.to_string()))?;
        let uuid = machine.uuid()?.to_string();
        let resource_path = format!("default/{uuid}/root");
        match self.store.put_if(NAMESPACE, &Key::parse(&resource_path)?, &self.confdata()?, If::Absent).await {
            // It has a key already.
            Ok(_) | Err(store::Error::Conflict { .. }) => {
                answer(&json!({ "uuid": uuid, "resource_path": resource_path }))
            }
            Err(e) => Err(e.into()),
        }
    }

    async fn forget(&self, uuid: &str) -> Result<Output, Error> {
        let uuid = Uuid::try_parse(uuid).map_err(|_| member("uuid", "is none".to_owned()))?;
        self.store.delete(NAMESPACE, &Key::parse(&format!("default/{uuid}/root"))?).await?;
        answer(&json!({ "status": "deleted" }))
    }

    async fn give(&self, uuid: &str, init_data_claims: Option<&Value>) -> Result<Output, Error> {
        let path = format!("default/{uuid}/root");
        let bound = init_data_claims.and_then(|claims| claims.get(CLAIM)).and_then(Value::as_str);
        // Before anything is said about whether there is a key.
        if bound != Some(format!("kbs+{NAME}:///{path}").as_str()) {
            return Err(Error::NotBound { plugin: NAME, claim: CLAIM });
        }
        let key = Key::parse(&path).map_err(|_| Error::Route(NAME))?;
        let entry = self.store.get(NAMESPACE, &key).await?;
        let entry = entry.ok_or(Error::Missing { plugin: NAME, what: "machine" })?;
        Ok(Output::secret(entry.value))
    }

    /// A new key in the form that systemd's credentials are carried in.
    fn confdata(&self) -> Result<Zeroizing<Vec<u8>>, Error> {
        let mut text = Zeroizing::new(Vec::with_capacity(CONFDATA.len() + self.key_length + 3));
        text.extend_from_slice(CONFDATA);
        text.push(b'"');
        let end = text.len() + self.key_length;
        while text.len() < end {
            let mut random = Zeroizing::new([0; 64]);
            aws_lc_rs::rand::fill(random.as_mut_slice()).map_err(|_| Error::Randomness(NAME))?;
            // 62 kinds fit 64 with two left over, which are thrown away so that all are equally likely.
            let letters = random.iter().filter_map(|byte| ALPHABET.get(usize::from(byte & 63)));
            let missing = end - text.len();
            text.extend(letters.take(missing));
        }
        text.extend_from_slice(b"\"\n");
        Ok(text)
    }
}

#[async_trait]
impl Plugin for Provisioner {
    fn name(&self) -> &str {
        NAME
    }

    async fn access(&self, request: &Request<'_>) -> Result<Access, Error> {
        Ok(if request.method == "GET" { Access::Guest } else { Access::Administrator })
    }

    async fn handle(&self, request: &Request<'_>, init_data_claims: Option<&Value>) -> Result<Output, Error> {
        match (request.method, request.path) {
            ("POST", ["provision"]) => self.provision(request.body).await,
            ("DELETE", ["provision", uuid]) => self.forget(uuid).await,
            ("GET", ["default", uuid, "root"]) => self.give(uuid, init_data_claims).await,
            _ => Err(Error::Route(NAME)),
        }
    }
}

#[derive(Deserialize)]
struct Machine {
    vm_name: String,
    #[serde(default = "default_namespace")]
    namespace: String,
}

impl Machine {
    /// UUID version 5 of `namespace/name`.
    fn uuid(&self) -> Result<Uuid, Error> {
        for (name, text) in [("vm_name", &self.vm_name), ("namespace", &self.namespace)] {
            // A slash would let two machines have one uuid.
            if text.is_empty() || text.len() > MAX_NAME || text.contains(|c: char| c == '/' || c.is_control()) {
                return Err(member(name, format!("must have 1 to {MAX_NAME} bytes, without / and control characters")));
            }
        }
        let named = [UUID_NAMESPACE.as_bytes(), self.namespace.as_bytes(), b"/", self.vm_name.as_bytes()].concat();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest(&SHA1_FOR_LEGACY_USE_ONLY, &named).as_ref()[..16]);
        Ok(Builder::from_sha1_bytes(bytes).into_uuid())
    }
}

fn answer(answer: &Value) -> Result<Output, Error> {
    Ok(Output::plain(answer.to_string().into_bytes()))
}

fn member(member: &'static str, reason: String) -> Error {
    Error::Member { plugin: NAME, member, reason }
}

fn default_namespace() -> String {
    "default".to_owned()
}

fn default_key_length() -> usize {
    32
}

const NAME: &str = "provisioner";
const NAMESPACE: Namespace = Namespace::new("provisioner");
const CLAIM: &str = "trustee.kbs.resource";
const UUID_NAMESPACE: Uuid = Uuid::from_u128(0xfeab5599_6854_52bc_95f0_0241c03e620a);
const CONFDATA: &[u8] = b"version = \"0.1.0\"\n\n[data]\n\"io.cryptsetup.key.text.root\" = ";
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// 131 bits.
const MIN_KEY_LENGTH: usize = 22;
const MAX_KEY_LENGTH: usize = 1024;
const MAX_BODY: usize = 4096;
const MAX_NAME: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[tokio::test]
    async fn a_machine_gets_the_key_that_its_initdata_names() {
        let provisioner = opened().await;
        let made = ask(&provisioner, "POST", &["provision"], br#"{"vm_name":"vm-1"}"#, None).await.unwrap();
        let again = ask(&provisioner, "POST", &["provision"], br#"{"vm_name":"vm-1","namespace":"default"}"#, None);
        assert_eq!(made.body, again.await.unwrap().body);
        assert!(!made.encrypted);
        let made: Value = serde_json::from_slice(&made.body).unwrap();
        // Computed with Python's uuid.uuid5.
        assert_eq!(made["uuid"], "09e85a47-3fe8-5ba0-8a0e-58f96fbcae73");
        assert_eq!(made["resource_path"], "default/09e85a47-3fe8-5ba0-8a0e-58f96fbcae73/root");

        let path = ["default", made["uuid"].as_str().unwrap(), "root"];
        let claims = json!({ CLAIM: format!("kbs+provisioner:///{}", path.join("/")) });
        let given = ask(&provisioner, "GET", &path, b"", Some(&claims)).await.unwrap();
        assert!(given.encrypted);
        let given: toml::Table = toml::from_str(std::str::from_utf8(&given.body).unwrap()).unwrap();
        assert_eq!(given["version"].as_str(), Some("0.1.0"));
        let key = given["data"]["io.cryptsetup.key.text.root"].as_str().unwrap();
        assert!(key.len() == 32 && key.bytes().all(|b| b.is_ascii_alphanumeric()), "{key}");

        for claims in [None, Some(json!({})), Some(json!({ CLAIM: 1 })), Some(json!({ CLAIM: path.join("/") }))] {
            let refused = ask(&provisioner, "GET", &path, b"", claims.as_ref()).await;
            assert!(matches!(refused, Err(Error::NotBound { .. })), "{claims:?}");
        }
        let other = ask(&provisioner, "GET", &["default", "other", "root"], b"", Some(&claims)).await;
        assert!(matches!(other, Err(Error::NotBound { .. })));

        for _ in 0..2 {
            let deleted = ask(&provisioner, "DELETE", &["provision", path[1]], b"", None).await.unwrap();
            assert_eq!(deleted.body.as_slice(), br#"{"status":"deleted"}"#);
        }
        let gone = ask(&provisioner, "GET", &path, b"", Some(&claims)).await;
        assert!(matches!(gone, Err(Error::Missing { .. })));
    }

    #[tokio::test]
    async fn machines_have_keys_of_their_own() {
        let provisioner = opened().await;
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            assert!(seen.insert(provisioner.confdata().unwrap().to_vec()));
        }
        let uuid = |namespace: &str, name: &str| {
            Machine { vm_name: name.to_owned(), namespace: namespace.to_owned() }.uuid().unwrap()
        };
        assert_ne!(uuid("a", "b"), uuid("b", "a"));
        assert_ne!(uuid("a", "b"), uuid("default", "b"));
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused() {
        let provisioner = opened().await;
        let long = format!(r#"{{"vm_name":"{}"}}"#, "x".repeat(254));
        for bad in [
            &b""[..],
            b"{}",
            b"[]",
            br#"{"vm_name":""}"#,
            br#"{"vm_name":1}"#,
            br#"{"vm_name":"a/b"}"#,
            br#"{"vm_name":"a","namespace":"a/b"}"#,
            br#"{"vm_name":"a\n"}"#,
            b"{\"vm_name\":\"\xff\"}",
            long.as_bytes(),
        ] {
            let refused = ask(&provisioner, "POST", &["provision"], bad, None).await;
            assert!(matches!(refused, Err(Error::Member { .. })), "{}", String::from_utf8_lossy(bad));
        }
        let large = vec![b' '; MAX_BODY + 1];
        let refused = ask(&provisioner, "POST", &["provision"], &large, None).await;
        assert!(matches!(refused, Err(Error::TooLarge { .. })));
        for (method, path) in [
            ("GET", &[][..]),
            ("GET", &["default", "x"]),
            ("GET", &["other", "x", "root"]),
            ("POST", &["provision", "x"]),
            ("DELETE", &["provision"]),
            ("PUT", &["provision"]),
        ] {
            assert!(matches!(ask(&provisioner, method, path, b"", None).await, Err(Error::Route(_))), "{path:?}");
        }
        for uuid in ["", "..", "x"] {
            let refused = ask(&provisioner, "DELETE", &["provision", uuid], b"", None).await;
            assert!(matches!(refused, Err(Error::Member { .. })), "{uuid}");
        }
        for key_length in [0, 21, 1025] {
            let store = Store::memory().await.unwrap();
            assert!(Provisioner::open(Config { key_length }, store).is_err());
        }
    }

    #[tokio::test]
    async fn only_keys_are_for_guests() {
        let provisioner = opened().await;
        let (query, body) = (BTreeMap::new(), Bytes::new());
        for (method, access) in
            [("GET", Access::Guest), ("POST", Access::Administrator), ("DELETE", Access::Administrator)]
        {
            let request = Request { method, path: &["provision"], query: &query, body: &body };
            assert_eq!(provisioner.access(&request).await.unwrap(), access);
        }
    }

    async fn opened() -> Provisioner {
        Provisioner::open(Config { key_length: 32 }, Store::memory().await.unwrap()).unwrap()
    }

    async fn ask(
        provisioner: &Provisioner,
        method: &str,
        path: &[&str],
        body: &[u8],
        claims: Option<&Value>,
    ) -> Result<Output, Error> {
        let (query, body) = (BTreeMap::new(), Bytes::copy_from_slice(body));
        provisioner.handle(&Request { method, path, query: &query, body: &body }, claims).await
    }

    proptest! {
        #[test]
        fn no_name_makes_it_panic(vm_name in ".{0,300}", namespace in ".{0,300}") {
            let _ = Machine { vm_name, namespace }.uuid();
        }
    }
}
