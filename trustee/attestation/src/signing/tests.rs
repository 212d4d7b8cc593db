//! Signing keys over time: rotation, replicas, files, and tokens that are not theirs.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

const NOW: u64 = 1_000_000;
const LIFETIME: Duration = Duration::from_secs(300);
const ROTATION: Duration = Duration::from_secs(3600);

struct Bench {
    signer: Arc<Signer>,
    changes: Changes,
    seconds: Arc<AtomicU64>,
}

impl Bench {
    async fn new(store: &Store) -> Self {
        Self::open(store, None).await.unwrap()
    }

    async fn open(store: &Store, files: Option<SignerFiles>) -> Result<Self, Error> {
        let seconds = Arc::new(AtomicU64::new(NOW));
        let clock = Clock::set_by(seconds.clone());
        let (signer, changes) = Signer::load(store.clone(), files, ROTATION, LIFETIME, clock).await?;
        Ok(Self { signer, changes, seconds })
    }

    fn token(&self) -> String {
        let expiry = self.seconds.load(Ordering::Relaxed) + LIFETIME.as_secs();
        self.signer.sign(&json!({ "exp": expiry })).unwrap()
    }

    fn pass(&self, duration: Duration) {
        self.seconds.fetch_add(duration.as_secs(), Ordering::Relaxed);
    }

    fn key_ids(&self) -> Vec<Value> {
        self.signer.jwks()["keys"].as_array().unwrap().iter().map(|key| key["kid"].clone()).collect()
    }
}

fn header(token: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap()).unwrap()
}

fn key_id(token: &str) -> Value {
    header(token)["kid"].clone()
}

#[tokio::test]
async fn a_replaced_key_is_published_and_verifies_until_its_last_token_has_expired() {
    let bench = Bench::new(&Store::memory().await.unwrap()).await;
    let first = bench.token();
    bench.signer.rotate().await.unwrap();
    let second = bench.token();
    assert_eq!(bench.key_ids(), [key_id(&second), key_id(&first)]);
    assert_ne!(key_id(&first), key_id(&second));

    bench.pass(LIFETIME - Duration::from_secs(1));
    assert!(bench.signer.verify(&first).is_ok() && bench.signer.verify(&second).is_ok());
    bench.pass(Duration::from_secs(1));
    assert!(matches!(bench.signer.verify(&first), Err(token::Error::Expired)));
    bench.pass(MARGIN);
    assert!(matches!(bench.signer.verify(&first), Err(token::Error::Signature)));
    assert_eq!(bench.key_ids(), [key_id(&second)]);
}

#[tokio::test]
async fn replicas_share_their_keys_and_hear_of_new_ones() {
    let store = Store::memory().await.unwrap();
    let (one, Bench { signer, changes, .. }) = (Bench::new(&store).await, Bench::new(&store).await);
    signer.verify(&one.token()).unwrap();

    let generation = signer.generation();
    one.signer.rotate().await.unwrap();
    let token = one.token();
    assert!(matches!(signer.verify(&token), Err(token::Error::Signature)));
    let mut changes = changes;
    let Changes::Store(heard) = &mut changes else { panic!("the keys are in the store") };
    timeout(Duration::from_secs(10), heard.changed()).await.unwrap();
    signer.refresh().await.unwrap();
    signer.verify(&token).unwrap();
    assert_ne!(signer.generation(), generation);
}

#[tokio::test]
async fn replicas_whose_key_is_due_make_one_new_key_between_them() {
    let store = Store::memory().await.unwrap();
    let (one, other) = (Bench::new(&store).await, Bench::new(&store).await);
    assert!(!one.signer.is_due());
    one.pass(ROTATION);
    other.pass(ROTATION);
    assert!(one.signer.is_due() && !one.signer.is_due(), "one caller is told");
    assert!(other.signer.is_due());
    tokio::join!(one.signer.rotate_if_due(), other.signer.rotate_if_due());

    assert_eq!(one.key_ids(), other.key_ids());
    assert_eq!(one.key_ids().len(), 2);
    assert!(!one.signer.is_due());
}

#[tokio::test]
async fn without_a_rotation_period_a_key_is_used_for_ever() {
    let clock = Clock::set_by(Arc::new(AtomicU64::new(NOW)));
    let store = Store::memory().await.unwrap();
    let (signer, _) = Signer::load(store, None, Duration::ZERO, LIFETIME, clock).await.unwrap();
    assert!(!signer.is_due());
}

#[tokio::test]
async fn rotating_in_a_loop_is_bounded() {
    let bench = Bench::new(&Store::memory().await.unwrap()).await;
    let mut rotations = 0;
    let error = loop {
        match bench.signer.rotate().await {
            Ok(()) => rotations += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::TooManyKeys));
    assert_eq!(rotations, 32);
    bench.pass(LIFETIME + MARGIN);
    bench.signer.rotate().await.unwrap();
}

#[tokio::test]
async fn only_an_unchanged_and_fresh_token_of_the_same_signer_is_accepted() {
    let bench = Bench::new(&Store::memory().await.unwrap()).await;
    let other = Bench::new(&Store::memory().await.unwrap()).await;
    let token = bench.token();
    assert!(matches!(other.signer.verify(&token), Err(token::Error::Signature)));

    let [head, payload, signature]: [&str; 3] = token.split('.').collect::<Vec<_>>().try_into().unwrap();
    let encoded = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let (none, hs256) = (encoded(json!({ "alg": "none" })), encoded(json!({ "alg": "HS256" })));
    let unnamed = encoded(json!({ "alg": "ES256" }));
    let stranger = encoded(json!({ "alg": "ES256", "kid": 7 }));
    let later = encoded(json!({ "exp": NOW * 2 }));
    for (changed, expected) in [
        (format!("{none}.{payload}."), "not signed with"),
        (format!("{hs256}.{payload}.{signature}"), "not signed with"),
        (format!("{unnamed}.{payload}.{signature}"), "not signed by this"),
        (format!("{stranger}.{payload}.{signature}"), "not signed by this"),
        (format!("{head}.{later}.{signature}"), "not signed by this"),
        (format!("{head}.{payload}."), "not signed by this"),
        (format!("{head}.{payload}.*"), "not a compact"),
        (format!("{head}.{payload}"), "not a compact"),
        (format!("*.{payload}.{signature}"), "not a compact"),
        (String::new(), "not a compact"),
        ("x".repeat(MAX_TOKEN + 1), "longer than"),
    ] {
        let error = bench.signer.verify(&changed).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    let endless = bench.signer.sign(&json!({ "submods": {} })).unwrap();
    assert!(matches!(bench.signer.verify(&endless), Err(token::Error::Expired)));
    let large = bench.signer.sign(&json!({ "exp": "x".repeat(MAX_TOKEN) }));
    assert!(matches!(large, Err(token::Error::TooLarge)));
}

/// A certification authority with a certificate for a signing key, in files.
struct Files {
    folder: TempDir,
    authority: (KeyPair, CertificateParams, String, Vec<u8>),
}

impl Files {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Authority of a test");
        let certificate = params.self_signed(&key).unwrap();
        let authority = (key, params, certificate.pem(), certificate.der().to_vec());
        Self { folder: TempDir::new().unwrap(), authority }
    }

    /// Writes a new key and its certificate; returns the certificate.
    fn issue(&self) -> Vec<u8> {
        let (authority_key, params, authority_pem, _) = &self.authority;
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(params, authority_key);
        let leaf = CertificateParams::new(vec!["signer.test".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        fs::write(self.folder.path().join("chain.pem"), leaf.pem() + authority_pem).unwrap();
        fs::write(self.folder.path().join("key.pem"), key.serialize_pem()).unwrap();
        leaf.der().to_vec()
    }

    fn signer(&self) -> SignerFiles {
        SignerFiles {
            key_path: self.folder.path().join("key.pem"),
            cert_path: Some(self.folder.path().join("chain.pem")),
            cert_url: Some("https://owner.test/chain.pem".to_owned()),
        }
    }
}

#[tokio::test]
async fn a_key_in_files_brings_its_certificates() {
    let (store, files) = (Store::memory().await.unwrap(), Files::new());
    let leaf = files.issue();
    let bench = Bench::open(&store, Some(files.signer())).await.unwrap();
    let header = header(&bench.token());
    assert_eq!(header["jwk"]["x5c"], json!([STANDARD.encode(leaf), STANDARD.encode(&files.authority.3)]));
    assert_eq!(header["jwk"]["x5u"], "https://owner.test/chain.pem");
    assert_eq!(bench.signer.jwks()["keys"][0]["x5c"], header["jwk"]["x5c"]);
    assert!(matches!(bench.signer.rotate().await, Err(Error::InFiles)));
    bench.pass(ROTATION * 2);
    assert!(!bench.signer.is_due());
}

#[tokio::test]
async fn replaced_files_take_effect_and_broken_ones_do_not() {
    let (store, files) = (Store::memory().await.unwrap(), Files::new());
    files.issue();
    let mut bench = Bench::open(&store, Some(files.signer())).await.unwrap();
    let first = bench.token();
    let Changes::Files(changes) = &mut bench.changes else { panic!("the key is in files") };

    files.issue();
    timeout(Duration::from_secs(10), changes.changed()).await.unwrap();
    bench.signer.refresh().await.unwrap();
    assert_ne!(key_id(&bench.token()), key_id(&first));
    bench.signer.verify(&first).unwrap();
    assert_eq!(bench.key_ids().len(), 2);

    let second = bench.token();
    fs::write(files.signer().key_path, "no key").unwrap();
    assert!(matches!(bench.signer.refresh().await, Err(Error::Files(FileError::NotAKey(_)))));
    assert_eq!(header(&bench.token()), header(&second));
}

#[tokio::test]
async fn files_that_do_not_fit_together_are_refused() {
    let store = Store::memory().await.unwrap();
    let (files, others) = (Files::new(), Files::new());
    files.issue();
    others.issue();
    let read = |path: &std::path::Path| fs::read_to_string(path).unwrap();
    let (good, other) = (files.signer(), others.signer());
    let chain = good.cert_path.clone().unwrap();
    let refusal = async |change: &dyn Fn()| {
        let (key, certificates) = (read(&good.key_path), read(&chain));
        change();
        let refused = Bench::open(&store, Some(good.clone())).await.err().map(|error| error.to_string());
        fs::write(&good.key_path, key).unwrap();
        fs::write(&chain, certificates).unwrap();
        refused.unwrap_or_default()
    };

    let foreign_key = refusal(&|| fs::write(&good.key_path, read(&other.key_path)).unwrap()).await;
    assert!(foreign_key.contains("not the one of the signing key"), "{foreign_key}");
    let foreign_authority = refusal(&|| fs::write(&chain, leaf_of(&read(&chain)) + &others.authority.2).unwrap()).await;
    assert!(foreign_authority.contains("not signed by the one after it"), "{foreign_authority}");
    let no_certificate = refusal(&|| fs::write(&chain, "nothing").unwrap()).await;
    assert!(no_certificate.contains("no certificates"), "{no_certificate}");
    let other_curve = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
    let wrong_curve = refusal(&|| fs::write(&good.key_path, &other_curve).unwrap()).await;
    assert!(wrong_curve.contains("no EC P-256"), "{wrong_curve}");
    let large = refusal(&|| fs::write(&good.key_path, "x".repeat(1 << 20)).unwrap()).await;
    assert!(large.contains("larger than"), "{large}");
    let missing = SignerFiles { key_path: files.folder.path().join("missing"), ..good.clone() };
    assert!(matches!(missing.read(), Err(FileError::Read { .. })));
    assert!(Bench::open(&store, Some(good.clone())).await.is_ok());
}

fn leaf_of(chain: &str) -> String {
    let end = "-----END CERTIFICATE-----\n";
    chain.split_inclusive(end).next().unwrap().to_owned()
}
