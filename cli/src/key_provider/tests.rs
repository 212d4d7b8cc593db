//! Tests of the key provider over gRPC, without a Trustee.

use std::path::Path;
use std::sync::Arc;

use tonic::transport::Channel;
use wire::layer::{AnnotationPacket, PrivateOptions};
use wire_grpc::key_provider::key_provider_service_client::KeyProviderServiceClient;

use super::*;

/// A served key provider and a client of it.
struct Lab {
    client: KeyProviderServiceClient<Channel>,
    reports: Arc<std::sync::Mutex<Vec<Wrapped>>>,
    folder: tempfile::TempDir,
}

impl Lab {
    async fn new() -> Self {
        let reports = Arc::new(std::sync::Mutex::new(Vec::new()));
        let seen = Arc::clone(&reports);
        let provider = KeyProvider::new(None, move |wrapped| seen.lock().unwrap().push(wrapped.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { provider.serve(listener, std::future::pending()).await.unwrap() });
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self { client: KeyProviderServiceClient::new(channel), reports, folder: tempfile::tempdir().unwrap() }
    }

    fn key(&self, name: &str) -> (String, Kek) {
        let path = self.folder.path().join(name);
        let key = Kek::create(&path).unwrap();
        (path.display().to_string(), key)
    }

    /// Asks as skopeo does.
    async fn wrap(&mut self, parameters: &str) -> Result<AnnotationPacket, Status> {
        let input = json!({
            "op": "keywrap",
            "keywrapparams": {
                "ec": { "Parameters": { "attestation-agent": [STANDARD.encode(parameters)] }, "DecryptConfig": {} },
                "optsdata": STANDARD.encode(OPTIONS),
            },
            "keyunwrapparams": { "dc": null, "annotation": null },
        });
        let input = Input { key_provider_key_wrap_protocol_input: input.to_string().into_bytes().into() };
        let output = self.client.wrap_key(input).await?.into_inner().key_provider_key_wrap_protocol_output;
        let output: serde_json::Value = serde_json::from_slice(&output).unwrap();
        let annotation: Vec<u8> = serde_json::from_value(output["keywrapresults"]["annotation"].clone()).unwrap();
        let members: serde_json::Value = serde_json::from_slice(&annotation).unwrap();
        let mut names: Vec<_> = members.as_object().unwrap().keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["iv", "kid", "wrap_type", "wrapped_data"], "a packet of version 1");
        Ok(AnnotationPacket::parse(&annotation).unwrap())
    }
}

#[tokio::test]
async fn guests_unwrap_what_was_wrapped_in_either_way() {
    let mut lab = Lab::new().await;
    let (path, key) = lab.key("key");
    for algorithm in ["A256GCM", "A256CTR"] {
        let packet = lab.wrap(&format!("keyid=/a/b/{algorithm}::keypath={path}::algorithm={algorithm}")).await.unwrap();

        assert_eq!(packet.kid(), format!("kbs:///a/b/{algorithm}"));
        assert_eq!(packet.provider(), "kbs");
        let options = packet.unwrap(key.as_bytes()).unwrap();
        assert_eq!(*options, OPTIONS.as_bytes());
        assert_eq!(PrivateOptions::parse(&options).unwrap().digest(), "sha256:00");
    }
    let reports = lab.reports.lock().unwrap();
    let lines: Vec<_> = reports.iter().map(ToString::to_string).collect();
    assert_eq!(lines[0], "layer sha256:00: key wrapped with A256GCM under kbs:///a/b/A256GCM");
    assert!(lines.len() == 2 && lines[1].contains("A256CTR"), "{lines:?}");
}

#[tokio::test]
async fn the_sample_key_is_upstreams() {
    let mut lab = Lab::new().await;
    let packet = lab.wrap("sample=true").await.unwrap();
    assert_eq!(packet.kid(), "kbs:///default/test-key/1");
    assert_eq!(*packet.unwrap(&SAMPLE_KEY).unwrap(), OPTIONS.as_bytes());

    let vector = Path::new("../../shared/vectors/ocicrypt/sample_kbc_annotation.json");
    match std::fs::read(vector) {
        Ok(packet) => {
            let options = AnnotationPacket::parse(&packet).unwrap().unwrap(&SAMPLE_KEY).unwrap();
            assert!(PrivateOptions::parse(&options).unwrap().digest().starts_with("sha256:18be1897"));
        }
        Err(e) => eprintln!("skipped: {}: {e}", vector.display()),
    }
}

#[tokio::test]
async fn a_key_without_a_name_gets_a_new_one() {
    let mut lab = Lab::new().await;
    let (path, key) = lab.key("key");
    let first = lab.wrap(&format!("keypath={path}")).await.unwrap();
    let second = lab.wrap(&format!("keypath={path}")).await.unwrap();
    assert!(first.kid().starts_with("kbs:///default/image-kek/") && first.kid() != second.kid());
    assert_eq!(*second.unwrap(key.as_bytes()).unwrap(), OPTIONS.as_bytes());
}

#[tokio::test]
async fn what_can_t_be_done_is_an_answer_and_no_panic() {
    let mut lab = Lab::new().await;
    let (one, _) = lab.key("one");
    let (other, _) = lab.key("other");
    lab.wrap(&format!("keyid=/a/b/c::keypath={one}")).await.unwrap();
    for (parameters, code, reason) in [
        ("", Code::InvalidArgument, "a new key would be lost"),
        ("keyid=/a/b/c", Code::InvalidArgument, "a new key would be lost"),
        ("keypath=/nowhere", Code::InvalidArgument, "key file /nowhere"),
        ("nonsense", Code::InvalidArgument, "NAME=VALUE"),
        (&format!("keyid=/a/b/c::keypath={other}"), Code::FailedPrecondition, "with another key"),
    ] {
        let refusal = lab.wrap(parameters).await.unwrap_err();
        assert_eq!(refusal.code(), code, "{parameters}");
        let text = refusal.message();
        assert!(text.contains(reason) && text.contains("; next: "), "{parameters:?} gave {text:?}");
    }
    for input in [&b""[..], b"{}", b"\xff", b"{\"keywrapparams\":{\"optsdata\":\"\"}}"] {
        let input = Input { key_provider_key_wrap_protocol_input: input.to_vec().into() };
        assert_eq!(lab.client.wrap_key(input).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let unwrapping = lab.client.un_wrap_key(Input::default()).await.unwrap_err();
    assert_eq!(unwrapping.code(), Code::Unimplemented);
}

#[test]
fn only_what_trustee_keeps_can_be_registered() {
    assert_eq!(resource(&ResourceUri::parse("kbs://host/a/b/c").unwrap()).unwrap().as_str(), "a/b/c");
    for other in ["kbs:///a/b", "kbs:///a/b/c/d", "kbs+pkcs11:///a/b/c", "kbs:///a/b/c?d=e"] {
        let error = resource(&ResourceUri::parse(other).unwrap()).unwrap_err().to_string();
        assert!(error.contains("; next: "), "{other} gave {error:?}");
    }
}

const OPTIONS: &str = r#"{"symkey":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","digest":"sha256:00","cipheroptions":{"nonce":"AAAAAAAAAAAAAAAAAAAAAA=="}}"#;
