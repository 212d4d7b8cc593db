//! Every kind of key: what is sealed to it, who opens it, and what another implementation of JOSE makes of the same.

use super::*;
use crate::encoding;
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeySize, Pkcs1PrivateDecryptingKey, PrivateDecryptingKey, PublicKeyComponents};
use proptest::prelude::*;
use serde_json::json;
use zeroize::Zeroizing;

#[test]
fn only_the_holder_of_the_key_opens_a_secret() {
    let keys = KeyAlgorithm::ALL.map(|algorithm| (algorithm, key(algorithm)));
    for (algorithm, key) in &keys {
        let jwe = seal_to(key);
        assert_eq!(&**key.open(&jwe).unwrap(), b"secret", "{algorithm:?}");
        assert_eq!(self::key(*algorithm).open(&jwe).unwrap_err(), Error::Crypto, "{algorithm:?}");
        for (other, _) in keys.iter().filter(|(other, _)| other != algorithm) {
            assert_eq!(self::key(*other).open(&jwe).unwrap_err(), Error::Header, "{other:?} {algorithm:?}");
        }
    }
}

#[test]
fn a_key_survives_its_pem() {
    for (algorithm, label) in KeyAlgorithm::ALL.into_iter().zip(["", "", "RSA ", ""]) {
        let key = key(algorithm);
        let pem = key.to_pem().unwrap();
        let read = TeeKey::from_pem(&pem).unwrap();
        assert!(pem.starts_with(&format!("-----BEGIN {label}PRIVATE KEY-----\n")), "{algorithm:?}");
        assert!(pem.lines().all(|line| line.len() <= 64) && pem.ends_with("-----\n"), "{algorithm:?}");
        assert_eq!(&**read.open(&seal_to(&key)).unwrap(), b"secret", "{algorithm:?}");
        assert_eq!(read.public_jwk().unwrap(), key.public_jwk().unwrap(), "{algorithm:?}");

        let cut = pem.replace("-----END", "----END");
        let other = pem.replace("RSA PRIVATE", "PRIVATE");
        for bad in [cut.as_str(), &pem[..pem.len() / 2], &other.replace("BEGIN PRIVATE", "BEGIN EC PRIVATE")] {
            assert!(matches!(TeeKey::from_pem(bad), Err(Error::Key(_))), "{algorithm:?}");
        }
    }
    for bad in ["", "nonsense", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"] {
        assert!(matches!(TeeKey::from_pem(bad), Err(Error::Key(_))), "{bad:?}");
    }
}

/// Keys and messages of jwcrypto 1.5, which knows no ML-KEM; of that, `ml_kem` has what openssl derives and wraps.
#[test]
fn what_another_implementation_sealed_is_opened() {
    for (pem, compact) in [(P256, SEALED_P256), (P521, SEALED_P521), (RSA, SEALED_RSA)] {
        let parts: Vec<&str> = compact.split('.').collect();
        let [protected, encrypted_key, iv, ciphertext, tag] = parts[..] else { panic!("{compact}") };
        let jwe = json!({
            "protected": protected, "encrypted_key": encrypted_key, "iv": iv, "ciphertext": ciphertext, "tag": tag,
        });
        let jwe: Jwe = serde_json::from_value(jwe).unwrap();
        assert_eq!(&**TeeKey::from_pem(pem).unwrap().open(&jwe).unwrap(), b"a foreign secret");
    }
}

#[test]
fn the_header_has_the_order_that_upstream_guests_rebuild() {
    let header = |algorithm| header(&seal_to(&key(algorithm)));
    let ecdh = r#"{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"crv":"P-256","kty":"EC","x":""#;
    assert!(header(KeyAlgorithm::EcdhP256).starts_with(ecdh));
    assert!(header(KeyAlgorithm::EcdhP521).starts_with(&ecdh.replace("256\",\"kty", "521\",\"kty")));
    assert_eq!(header(KeyAlgorithm::RsaOaep256), r#"{"alg":"RSA-OAEP-256","enc":"A256GCM"}"#);
    let rest = header(KeyAlgorithm::MlKem768);
    let rest = rest.strip_prefix(r#"{"alg":"ML-KEM-768+A192KW","enc":"A256GCM","ek":""#).unwrap();
    // A ciphertext of 1088 bytes.
    assert_eq!(rest.strip_suffix(r#""}"#).unwrap().len(), 1451);
}

#[test]
fn a_changed_member_is_noticed() {
    let flip = |text: &str| {
        let mut bytes = encoding::url(text).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        encoding::to_url(&bytes)
    };
    for algorithm in KeyAlgorithm::ALL {
        let key = key(algorithm);
        let sealed = seal_to(&key);
        for changed in [
            Jwe { encrypted_key: flip(&sealed.encrypted_key), ..sealed.clone() },
            Jwe { encrypted_key: String::new(), ..sealed.clone() },
            Jwe { iv: flip(&sealed.iv), ..sealed.clone() },
            Jwe { ciphertext: flip(&sealed.ciphertext), ..sealed.clone() },
            Jwe { tag: flip(&sealed.tag), ..sealed.clone() },
            Jwe { tag: String::new(), ..sealed.clone() },
            Jwe { aad: Some("AA".to_owned()), ..sealed.clone() },
            Jwe { protected: encoding::to_url(b"{}"), ..sealed.clone() },
            Jwe { protected: encoding::to_url(format!("{} ", header(&sealed)).as_bytes()), ..sealed.clone() },
        ] {
            assert!(key.open(&changed).is_err(), "{changed:?}");
        }
    }
}

#[test]
fn rsa1_5_is_for_those_who_allow_it() {
    let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
    let der: PublicKeyX509Der<'_> = private.public_key().as_der().unwrap();
    let parts = PublicKeyComponents::<Vec<u8>>::from(&aws_lc_rs::rsa::PublicKey::from_der(der.as_ref()).unwrap());
    let (n, e) = (encoding::to_url(&parts.n), encoding::to_url(&parts.e));
    let jwk = json!({ "kty": "RSA", "alg": "RSA1_5", "n": n, "e": e });

    let refusal = TeePublicKey::from_jwk(&jwk).err().unwrap().to_string();
    assert!(refusal.contains("RSA1_5 is not allowed"), "{refusal}");
    let jwe = TeePublicKey::from_jwk_with(&jwk, true).unwrap().seal(b"secret").unwrap();

    assert_eq!(header(&jwe), r#"{"alg":"RSA1_5","enc":"A256GCM"}"#);
    let private = Pkcs1PrivateDecryptingKey::new(private).unwrap();
    let mut cek = vec![0; private.min_output_size()];
    let wrapped = encoding::url(&jwe.encrypted_key).unwrap();
    let cek: [u8; 32] = (*private.decrypt(&wrapped, &mut cek).unwrap()).try_into().unwrap();
    assert_eq!(&**ContentKey::new(Zeroizing::new(cek)).open(&jwe).unwrap(), b"secret");
}

#[test]
fn other_keys_are_refused() {
    let good = TeeKey::generate().unwrap().public_jwk().unwrap();
    for (member, value) in [
        ("kty", json!("oct")),
        ("kty", json!("AKP")),
        ("crv", json!("P-384")),
        ("alg", json!("none")),
        ("alg", json!("ML-KEM-768+A192KW")),
        ("x", json!("AA")),
        ("y", json!(7)),
        // Not on the curve.
        ("y", good["x"].clone()),
    ] {
        let mut jwk = good.clone();
        jwk[member] = value;
        assert!(matches!(TeePublicKey::from_jwk_with(&jwk, true), Err(Error::Key(_))), "{jwk}");
    }
    let mut jwk = key(KeyAlgorithm::MlKem768).public_jwk().unwrap();
    jwk["alg"] = json!("ML-KEM-768");
    assert!(TeePublicKey::from_jwk(&jwk).is_err());
}

proptest! {
    #[test]
    fn no_header_makes_it_panic(header in "\\PC{0,200}", key in proptest::collection::vec(any::<u8>(), 0..80)) {
        let jwe = Jwe {
            protected: encoding::to_url(header.as_bytes()),
            encrypted_key: encoding::to_url(&key),
            iv: String::new(), ciphertext: String::new(), tag: String::new(), aad: None,
        };
        prop_assert!(TeeKey::generate().unwrap().open(&jwe).is_err());
    }

    #[test]
    fn no_encapsulation_makes_it_panic(ek in proptest::collection::vec(any::<u8>(), 0..1200), key: [u8; 32]) {
        let header = json!({ "alg": ml_kem::ALG, "enc": "A256GCM", "ek": encoding::to_url(&ek) });
        let jwe = Jwe {
            protected: encoding::to_url(header.to_string().as_bytes()),
            encrypted_key: encoding::to_url(&[&key[..], &[0; 8]].concat()),
            iv: String::new(), ciphertext: String::new(), tag: String::new(), aad: None,
        };
        prop_assert!(self::key(KeyAlgorithm::MlKem768).open(&jwe).is_err());
    }

    #[test]
    fn no_document_in_a_pem_makes_it_panic(der in proptest::collection::vec(any::<u8>(), 0..200), rsa: bool) {
        let label = if rsa { pem::Label::RsaPrivateKey } else { pem::Label::PrivateKey };
        prop_assert!(TeeKey::from_pem(&label.encode(&der)).is_err());
    }
}

fn key(algorithm: KeyAlgorithm) -> TeeKey {
    TeeKey::generate_for(algorithm).unwrap()
}

fn seal_to(key: &TeeKey) -> Jwe {
    TeePublicKey::from_jwk(&key.public_jwk().unwrap()).unwrap().seal(b"secret").unwrap()
}

fn header(jwe: &Jwe) -> String {
    String::from_utf8(encoding::url(&jwe.protected).unwrap()).unwrap()
}

const P256: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgo4mT3HbnXrg49Ezk
M/Zs0W62kl/IwozWA6Tyzrtkf7+hRANCAARnTWnfFGYnpKlN9dp2Ncozk4wGkTgU
Bo1R9fmcuOlFvQ0N+/ZSjMV73CdwydG+SLdO+HDweGakD57aH+0fL6et
-----END PRIVATE KEY-----";
const P521: &str = "-----BEGIN PRIVATE KEY-----
MIHuAgEAMBAGByqGSM49AgEGBSuBBAAjBIHWMIHTAgEBBEIB4Sglh0/758hhUTQ0
ObivOzgzQHwGKVXfPkn2eOrJkdvx9+pIbJ/HRyQ4qs1wRiXoJM9yuFHdOgkf9P1A
cNBqpoqhgYkDgYYABAELBLb9mXaVP+BbbX0fh3rJ5aVDnpB1h/2cQQUptfw0niyH
ikz3Bp0hAsyn1eB0a49RQioIYR+EguN2aWSmTH8G8AGjdhuyGjA1CZglxIr5YjyZ
5Pr/cnfBVUojl6C8Fjr1iqIqlWiotRNqmC1mnYepHJRUmbnRljNdJ/rf4k9SYd0n
8g==
-----END PRIVATE KEY-----";
const RSA: &str = "-----BEGIN RSA PRIVATE KEY-----
MIIEpAIBAAKCAQEAx9rNATFYl4MrYt9cMHuwTSmuz+djnVvMr12NDdZL0luuLZ+f
YKpc/ufAOvspIiY/8hDnUvXu5xEOzCu2f+Q93YCojqY9FWz7CPsoLhdkpN7y4gTP
XsfCtWiCQFc9oOEhH+D6tdSx9TLwz6F9SaSBb9IYcOxf0QeBIS/UZHdQOw1pvZe3
KS5Rn2uYOFBm3j3HOooFG5vyBxBLIJaCh4yA711Gu6EX1jDLgOGRwp2twgaISpsZ
/zMmT6TJOrlZnI6IXbKDQsSdwH5FB151NabR/5qxUeocv/Xi2PYslDHBfYuk+ME4
AVeUBkHpCMGLV3z49iqRSwjssYjqdeai8cEGMwIDAQABAoIBAE29PfYjUD8rXjKJ
CK6xRjxVpPKpIpYAseda//WscHTkhaWojBHJYwAifKNUtETc1Q3fZmPeVy4ZdASW
UliAG1Jwa+CFKIiPijyNma0IG3WIZbjmPxWypXn0K4pEhSvxtnVUiaE2GXzz8jkJ
q5b8Pv8Unb47K/A+t4uFs9vaj2JQXpfnsqVH92V9JFHqgLNZFeA8HNe0g2/uFHy1
jHXKWMkC0IFeYQM3zR4YlgjBca8+OPZ0JPgqzJgNx2yDbzjdVhUWSogqQdApzX7E
WYXC2KE+wvhCV2uOlSzZfOCrivvRuRXgNUV28TjyOz+QDzGDKturVjnvHLA4zWwB
RpzHDMkCgYEA76sPD2jVT4SWQN3kYyCczVi3g+VgddrYFUkNypkwnxhu0Ydnx0RV
7rVBSuhtWzk68kkMmhxpsBPG+f9e8U7C8zLSGRptDbPMPKW6y/tjuniwf6L5uixw
3kmTjVNQTc0XeXEc1MJw15PYBYvlOHIfGObiipKHwXPVaVlrIfUgOvsCgYEA1Xk1
AOVaGd1zQZnuLhcOdWcRIcclt5ud/6LsOsrOekavTCUObQIZHt0nE5avffRu5QlD
T0Do1gM0bGYegOd5mVSrGsjjaQBczFk+3/s9Hi8eAm9LK2P5lHhXg16pWYu+GK9K
axys6pylfKhyEe/+Im4WZ2ds+6Cztrp0LUoyfCkCgYEAvp/R5LG/J/YPBBz48JcZ
4II1xKSGanbb82IdpAzgDUqDqggG1QlXR/vGqOvhPvNwHRFZAqKitTelxWYGf+vj
R0ger3TDVGizg3FV97RFiCVCTOK1ugxq4YKn53pint8HUsJS6i6VTgH7ib3RXWn3
rfjGKu2NKKMXFSnX+jRbpE0CgYEAm7zlklXAugX5Q+7M+QsRHU2oDgB/38fEKO/v
b6Ttpf9TfDW8pIJXWVD2ZTAVr8pX7PgpBvTP6PJFmJ+XuWsmJ1rBybStU7lT+jFR
0Y41NIQjXJtdN7akKlDxZ4H0AsQUV2Xq4OH2tOK7SIqLTdLMkMnHxoCJ3bmL4s98
Wl47HqECgYAOnmv3ro9F9OJ4Sv8uX7MyUW8/SEBbmjGmtIx86bs1WNm1jEAk32k1
bepzn8S4kA4e5nr4BRW0rMBph2RYkGUCxlOi4Dppfk1kjquDgC67DnZloCfxC703
xVSj84HTpGOmFwx5sfqfe41/mIiDxuNDg4l18kgkuHSSh0LpD4J24g==
-----END RSA PRIVATE KEY-----";
const SEALED_P256: &str = "eyJhbGciOiJFQ0RILUVTK0EyNTZLVyIsImVuYyI6IkEyNTZHQ00iLCJlcGsiOnsiY3J2IjoiUC0yNTYiLCJrdHkiOiJFQyIsIngiOiJDWDZZSn\
     VpQVRfMDVHUEs1S3NrVHpzbEZnNUY5U1hVeFkwbFhzdzBJY01vIiwieSI6IndkTERXeW1EZF90ZUhFN1NMUGdDYTdNMGpvYWU3Wm12MVMtUVNw\
     TTlWTzAifX0.0jPPu2SObWXpthR75ew-RAGix_9DKinOcdwFbvwAodeWMNj9MZ5SUQ.xzLujQ1vivaR73jt.Kan8G_8Oc312z0MjUxLk6Q.hur\
     DLVjBNEOKw60Ewm0p4w";
const SEALED_P521: &str = "eyJhbGciOiJFQ0RILUVTK0EyNTZLVyIsImVuYyI6IkEyNTZHQ00iLCJlcGsiOnsiY3J2IjoiUC01MjEiLCJrdHkiOiJFQyIsIngiOiJBVUEwZW\
     I3TEM3QjIwZVROT011eGxsenRNRXg2QVk4aFFZeUw1MHVwbERiRVVPZklCdkdETUdrWVBqVzhKbEgteU5XUHFSY0hfekxaTUZ4RmoyV09wQUsz\
     IiwieSI6IkFNdS1VdnhuQkkxbDZ5NXVlMWNOZlpJNFYxMHEwcTFQaEp6cE90bTU0ZDV6R3NLaEFRSnZ0aE54SUxKNG1TSnUydDBYVUNyeTF5T1\
     JHTG03ZDA1WFZSTUEifX0.luNKI4mb9rmfBbM0PbmTh_8MuRA1vjEZwmXbu7s3suUfJCxVf0pFjQ.RyZO5086jVGdZDzp.XgYzpMCjW2gzrPyZ\
     3Vh3Kw.dYNUbosJtQ2v20PWe8DCww";
const SEALED_RSA: &str = "eyJhbGciOiAiUlNBLU9BRVAtMjU2IiwgImVuYyI6ICJBMjU2R0NNIn0.cjXJHbRuiTnA21zP2iwGrARPLQJRFLyrTzN3epFy13l9PveB3vBBiZ\
     aqqw4Lqek7P0Vz5pNHA-JM9kPdZgLrfjPN0bythsjHK6vT0qp2-pg7lQ8tqbaMwtIf72DchCrugPIKCRpJ82qs_8KIgTeT-jAeNMlwWIR2_415\
     lM1fzKWtIymRXbSyVP-pI74HYl3-hwGM5v1GSsa19FINaTJcGl-E5xEyP_2umniBGhhJ0qXmDn7PCuH3nzmdM8A3dVWMRXmZQeoKErZH2p-5Ig\
     kk_zJd55fLQqD5NNfloaivNKj4D_BLM4iSa4XeeP9M7M37AXy4MN_UWwlrqg8dTS3q6A.eZzCWNo3QYie9Feg.T7dFA5imNX0jTVejLZ7VVQ.M\
     oxVOnd0LSQ_23pNmqrDIQ";
