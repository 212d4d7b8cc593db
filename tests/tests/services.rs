//! The guest's services apart from each other, with a real Trustee.

#![allow(clippy::unwrap_used)]

use serde_json::json;
use tests::load::Target;
use tests::{Lab, Services, set};

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_with_any_kind_of_key_gets_its_secret() {
    let lab = Lab::new();
    let trustee = lab.trustee();
    trustee.secret("default/test/key", &lab.file("secret", "a secret"));
    trustee.config(&["set-resource-policy", "--allow-all"]);

    for algorithm in ["ECDH-ES+A256KW-P256", "ECDH-ES+A256KW-P521", "RSA-OAEP-256", "ML-KEM-768+A192KW"] {
        let guest = Services::start(&lab, &Lab::program("guestd"), &trustee, algorithm);
        assert_eq!(ask(&guest).await, (200, "a secret".to_owned()), "{algorithm}");
    }
}

/// What it had signed before counts no longer, and the guest's token has minutes to live.
#[tokio::test(flavor = "multi_thread")]
async fn a_trustee_that_has_other_keys_now_is_attested_to_anew() {
    let lab = Lab::new();
    let mut trustee = lab.trustee_with(|configuration| {
        configuration.remove("storage_backend");
        set(configuration, "storage_backend.storage_type", "Memory");
    });
    let secret = lab.file("secret", "a secret");
    let prepare = |trustee: &tests::Trustee| {
        trustee.secret("default/test/key", &secret);
        trustee.config(&["set-resource-policy", "--allow-all"]);
    };
    prepare(&trustee);
    let guest = Services::start(&lab, &Lab::program("guestd"), &trustee, "ECDH-ES+A256KW-P256");
    assert_eq!(ask(&guest).await, (200, "a secret".to_owned()));

    trustee.crash_and_restart();
    prepare(&trustee);

    assert_eq!(ask(&guest).await, (200, "a secret".to_owned()));
    let attested = trustee.audit().iter().filter(|record| record["event"] == json!("attestation")).count();
    assert_eq!(attested, 2, "{:#?}", trustee.audit());
}

/// Status and body, as a container gets them.
async fn ask(guest: &Services) -> (u16, String) {
    let mut connection = Target::new(guest.url(), None).connection();
    let answer = connection.send("GET", "/cdh/resource/default/test/key", None, "").await.unwrap();
    (answer.status.as_u16(), String::from_utf8(answer.body.to_vec()).unwrap())
}
