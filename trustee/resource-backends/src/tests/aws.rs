//! AWS Secrets Manager and the places that credentials come from.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::double::{Double, Reply, Seen};
use super::{
    LIMITS, SECRET, canonical_hash, clock, environment, keeps_resources, keyed, makes_once, pass, path, put, value,
};
use crate::aws::{Aws, Config};
use crate::{Backend, Condition, Error, Kind};

const ACCESS_KEY: &str = "AKIDEXAMPLE";
const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)];

#[derive(Default)]
struct State {
    secrets: BTreeMap<String, Held>,
    /// What every request must carry.
    session: Option<String>,
    next: u64,
}

#[derive(Clone)]
struct Held {
    value: Value,
    version: String,
    deleted: bool,
}

/// The check of Signature Version 4, written from AWS's description and not from the signer.
fn is_signed(seen: &Seen) -> bool {
    let header = seen.header("authorization").strip_prefix("AWS4-HMAC-SHA256 ").unwrap();
    let parts: BTreeMap<&str, &str> = header.split(", ").map(|part| part.split_once('=').unwrap()).collect();
    let (id, scope) = parts["Credential"].split_once('/').unwrap();
    let time = seen.header("x-amz-date");
    assert_eq!((id, scope), (ACCESS_KEY, format!("{}/eu-west-1/secretsmanager/aws4_request", &time[..8]).as_str()));
    let signed = parts["SignedHeaders"];
    for needed in ["host", "x-amz-date", "x-amz-target"] {
        assert!(signed.split(';').any(|name| name == needed), "{needed} is not signed");
    }
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", canonical_hash(seen, signed));
    let day = keyed(format!("AWS4{SECRET_KEY}").as_bytes(), &time[..8]);
    let key = keyed(&keyed(&keyed(&day, "eu-west-1"), "secretsmanager"), "aws4_request");
    parts["Signature"] == hex::encode(keyed(&key, &text))
}

fn answer(state: &Mutex<State>, seen: &Seen) -> Reply {
    let mut state = state.lock().unwrap();
    let refusal = |kind: &str, message: &str| {
        Reply::json(400, &json!({ "__type": format!("com.amazonaws.secretsmanager#{kind}"), "message": message }))
    };
    assert!(is_signed(seen), "the signature is wrong");
    if state.session.as_deref().unwrap_or_default() != seen.header("x-amz-security-token") {
        return refusal("ExpiredTokenException", SECRET);
    }
    let body = seen.json();
    let name = body["SecretId"].as_str().or(body["Name"].as_str()).unwrap_or_default().to_owned();
    let held = state.secrets.get(&name).cloned();
    let absent = || refusal("ResourceNotFoundException", "can't find it");
    let deleted =
        || refusal("InvalidRequestException", "You can't perform this operation: it was marked for deletion.");
    let action = seen.header("x-amz-target").strip_prefix("secretsmanager.").unwrap();
    match (action, held) {
        ("ListSecrets", _) => {
            let from: usize = body["NextToken"].as_str().map_or(0, |token| token.parse().unwrap());
            let names: Vec<&String> = state.secrets.iter().filter(|(_, h)| !h.deleted).map(|(name, _)| name).collect();
            let page: Vec<Value> = names.iter().skip(from).take(2).map(|name| json!({ "Name": name })).collect();
            let next = (from + 2 < names.len()).then(|| (from + 2).to_string());
            Reply::json(200, &json!({ "SecretList": page, "NextToken": next }))
        }
        ("CreateSecret", Some(held)) if held.deleted => refusal(
            "InvalidRequestException",
            "You can't create this secret because a secret with this name is already scheduled for deletion.",
        ),
        ("CreateSecret", Some(_)) => refusal("ResourceExistsException", "it exists"),
        ("GetSecretValue" | "PutSecretValue" | "DeleteSecret" | "RestoreSecret", None) => absent(),
        ("GetSecretValue" | "PutSecretValue" | "DeleteSecret", Some(held)) if held.deleted => deleted(),
        ("GetSecretValue", Some(held)) => {
            let mut answer = held.value;
            answer["VersionId"] = json!(held.version);
            Reply::json(200, &answer)
        }
        ("CreateSecret" | "PutSecretValue", _) => {
            assert_eq!(body["ClientRequestToken"].as_str().unwrap().len(), 32);
            state.next += 1;
            let version = format!("v{}", state.next);
            let value = json!({ "SecretBinary": body["SecretBinary"] });
            state.secrets.insert(name, Held { value, version: version.clone(), deleted: false });
            Reply::json(200, &json!({ "VersionId": version }))
        }
        ("DeleteSecret" | "RestoreSecret", Some(held)) => {
            state.secrets.insert(name, Held { deleted: action == "DeleteSecret", ..held });
            Reply::json(200, &json!({}))
        }
        _ => panic!("{action} is not an action of the service"),
    }
}

async fn service() -> (Double, Arc<Mutex<State>>) {
    let state = Arc::new(Mutex::new(State::default()));
    let double = Double::start({
        let state = state.clone();
        move |seen| answer(&state, seen)
    })
    .await;
    (double, state)
}

fn config(double: &Double, more: &str) -> Config {
    toml::from_str(&format!("region = \"eu-west-1\"\nendpoint_url = \"{}\"\n{more}", double.url)).unwrap()
}

async fn open(double: &Double, variables: &[(&str, &str)]) -> Aws {
    Aws::new(config(double, "naming = \"path\""), &environment(variables), &clock().1, LIMITS).await.unwrap()
}

#[tokio::test]
async fn resources_are_kept_under_signed_requests() {
    let (double, _) = service().await;
    let aws = open(&double, &KEYS).await;
    keeps_resources(&aws).await;
    makes_once(&aws).await;
    let versioned = Condition::Version("v1".to_owned());
    for outcome in [
        aws.put(&path("a/b/c"), b"v", &versioned).await.map(|_| ()),
        aws.delete(&path("a/b/c"), &versioned).await.map(|_| ()),
    ] {
        assert!(matches!(outcome, Err(Error::ConditionUnsupported { .. })));
    }
    let outcome = aws.put(&path("a/b/c"), &vec![0; 65_537], &Condition::Any).await;
    assert!(matches!(outcome, Err(Error::TooLarge { max: 65_536, .. })));
}

#[tokio::test]
async fn a_deleted_name_is_taken_into_use_again() {
    let (double, _) = service().await;
    let aws = open(&double, &KEYS).await;
    put(&aws, "once/key/1", b"old").await;
    aws.delete(&path("once/key/1"), &Condition::Any).await.unwrap();
    assert!(!aws.delete(&path("once/key/1"), &Condition::Any).await.unwrap());
    makes_once(&aws).await;
}

#[tokio::test]
async fn upstreams_naming_and_texts_are_read() {
    let (double, state) = service().await;
    let text = Held { value: json!({ "SecretString": "text" }), version: "v".to_owned(), deleted: false };
    state.lock().unwrap().secrets.insert("tag".to_owned(), text);
    let aws = Aws::new(config(&double, ""), &environment(&KEYS), &clock().1, LIMITS).await.unwrap();
    assert_eq!(value(&aws, "default/key/tag").await.unwrap(), b"text");
    assert_eq!(value(&aws, "other/key/tag").await.unwrap(), b"text");
    assert_eq!(aws.list(None).await.unwrap_err().kind(), Kind::BadRequest);
}

#[tokio::test]
async fn a_refusal_says_whose_turn_it_is_and_repeats_no_words() {
    for (kind, expected) in [
        ("AccessDeniedException", Kind::Internal),
        ("InvalidSignatureException", Kind::Internal),
        ("ThrottlingException", Kind::Unavailable),
        ("InvalidParameterException", Kind::Internal),
    ] {
        let body = json!({ "__type": kind, "Message": SECRET });
        let double = Double::start(move |_| Reply::json(400, &body)).await;
        let error = open(&double, &KEYS).await.get(&path("a/b/c")).await.unwrap_err();
        assert_eq!(error.kind(), expected, "{error}");
        // The service throttles with a 400 too.
        assert_eq!(double.seen().len() > 1, kind == "ThrottlingException", "{kind}");
        assert!(error.to_string().contains(kind) && !error.to_string().contains(SECRET), "{error}");
    }
    for (body, cause) in
        [(json!({ "VersionId": "v", "SecretBinary": "*" }), "base64"), (json!({ "VersionId": "v" }), "no secret")]
    {
        let double = Double::start(move |_| Reply::json(200, &body)).await;
        let error = open(&double, &KEYS).await.get(&path("a/b/c")).await.unwrap_err();
        assert!(matches!(&error, Error::Malformed { cause: found, .. } if found.contains(cause)), "{error}");
    }
}

/// Credentials of the double's only user, with a token and an end.
fn temporary(session: &str, end: &str) -> Value {
    json!({ "Code": "Success", "AccessKeyId": ACCESS_KEY, "SecretAccessKey": SECRET_KEY, "Token": session,
            "Expiration": end })
}

#[tokio::test]
async fn an_instance_gives_credentials_that_are_renewed() {
    let instance = Double::start(|seen| match (seen.method.as_str(), seen.path.as_str()) {
        ("PUT", "/latest/api/token") => {
            assert_eq!(seen.header("x-aws-ec2-metadata-token-ttl-seconds"), "300");
            Reply::text(200, "imds")
        }
        _ if seen.header("x-aws-ec2-metadata-token") != "imds" => Reply::status(401),
        (_, "/latest/meta-data/iam/security-credentials/") => Reply::text(200, "trustee-role\n"),
        (_, "/latest/meta-data/iam/security-credentials/trustee-role") => {
            // The test's clock stands at 2027-01-15T08:00:00Z.
            Reply::json(200, &temporary("session", "2027-01-15T14:00:00Z"))
        }
        (_, "/latest/meta-data/placement/region") => Reply::text(200, "eu-west-1"),
        _ => Reply::status(404),
    })
    .await;
    let (double, state) = service().await;
    state.lock().unwrap().session = Some("session".to_owned());
    let config = toml::from_str(&format!("endpoint_url = \"{}\"", double.url)).unwrap();
    let (seconds, clock) = clock();
    let metadata = environment(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &instance.url)]);
    let aws = Aws::new(config, &metadata, &clock, LIMITS).await.unwrap();
    put(&aws, "default/key/1", b"v").await;
    assert_eq!(instance.count("trustee-role"), 1);

    pass(&seconds, 6 * 3600 - 300);
    put(&aws, "default/key/1", b"v").await;
    assert_eq!(instance.count("trustee-role"), 2);
}

#[tokio::test]
async fn a_web_identity_is_exchanged_and_again_when_its_session_was_ended() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "a.b.c").unwrap();
    let sessions = Arc::new(Mutex::new(0));
    let sts = Double::start({
        let sessions = sessions.clone();
        move |seen| {
            let fields = ["Action", "Version", "RoleArn", "RoleSessionName", "WebIdentityToken"].map(|f| seen.field(f));
            let expected = ["AssumeRoleWithWebIdentity", "2011-06-15", "arn:aws:iam::1:role/t", "trustee", "a.b.c"];
            assert_eq!(fields, expected);
            let mut sessions = sessions.lock().unwrap();
            *sessions += 1;
            Reply::text(
                200,
                &format!(
                    "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
                     <AssumeRoleWithWebIdentityResult><Credentials><SessionToken>session-{sessions}</SessionToken>\
                     <SecretAccessKey>{SECRET_KEY}</SecretAccessKey><Expiration>2027-01-15T09:00:00Z</Expiration>\
                     <AccessKeyId>{ACCESS_KEY}</AccessKeyId></Credentials></AssumeRoleWithWebIdentityResult>\
                     </AssumeRoleWithWebIdentityResponse>"
                ),
            )
        }
    })
    .await;
    let (double, state) = service().await;
    state.lock().unwrap().session = Some("session-1".to_owned());
    let variables = environment(&[
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/t"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
        ("AWS_ENDPOINT_URL_STS", &sts.url),
    ]);
    let (seconds, clock) = clock();
    let aws = Aws::new(config(&double, ""), &variables, &clock, LIMITS).await.unwrap();
    put(&aws, "default/key/1", b"v").await;

    state.lock().unwrap().session = Some("session-2".to_owned());
    pass(&seconds, 60);
    assert_eq!(value(&aws, "default/key/1").await.unwrap(), b"v");
    assert_eq!(*sessions.lock().unwrap(), 2);
}

#[tokio::test]
async fn a_container_and_a_profile_give_credentials() {
    let container = Double::start(|seen| match seen.header("authorization") {
        "pod-token" => Reply::json(200, &temporary("session", "2027-01-15T09:00:00Z")),
        _ => Reply::status(403),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), "pod-token\n").unwrap();
    let profile = format!("[ci]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n");
    std::fs::write(folder.path().join("credentials"), profile).unwrap();
    std::fs::write(folder.path().join("config"), "[profile ci]\nregion = eu-west-1\n").unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();

    let (double, state) = service().await;
    state.lock().unwrap().session = Some("session".to_owned());
    let pod = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", container.url.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &file("token")),
    ];
    put(&open(&double, &pod).await, "default/key/1", b"v").await;

    state.lock().unwrap().session = None;
    let config = toml::from_str(&format!("endpoint_url = \"{}\"", double.url)).unwrap();
    let (credentials, region) = (file("credentials"), file("config"));
    let variables = environment(&[
        ("AWS_SHARED_CREDENTIALS_FILE", &credentials),
        ("AWS_CONFIG_FILE", &region),
        ("AWS_PROFILE", "ci"),
    ]);
    put(&Aws::new(config, &variables, &clock().1, LIMITS).await.unwrap(), "default/key/1", b"v").await;
}

#[tokio::test]
async fn no_credentials_and_ended_ones_are_told() {
    let (double, _) = service().await;
    let disabled = environment(&[("AWS_EC2_METADATA_DISABLED", "true")]);
    let error = Aws::new(config(&double, ""), &disabled, &clock().1, LIMITS).await.err().unwrap();
    assert!(matches!(error, Error::Credentials { .. }), "{error}");

    let container = Double::start(|_| Reply::json(200, &temporary("session", "2027-01-15T07:59:59Z"))).await;
    let aws = open(&double, &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container.url)]).await;
    let error = aws.get(&path("a/b/c")).await.unwrap_err();
    assert!(error.to_string().contains("have ended already"), "{error}");
}
