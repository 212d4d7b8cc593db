//! The client of Intel Trust Authority: verifies quotes of TDX and SGX, and of NVIDIA's GPUs beside them.
//!
//! Source: API version 2 of the service, `POST /appraisal/v2/attest`.

mod body;

use std::time::Duration;

use attestation::{Evaluation, HashAlgorithm};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use wire::rcar::Tee;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::grpc::chain;

/// How Intel Trust Authority is asked.
#[derive(Clone)]
pub struct IntelSettings {
    /// `https://api.trustauthority.intel.com`, or the service of another region.
    pub base_url: String,
    /// The key of an attestation API subscription.
    pub api_key: Zeroizing<String>,
    /// Ids of the policies to appraise under.
    pub policy_ids: Vec<String>,
    /// Also takes evidence that does not match those policies; the token says which.
    pub allow_unmatched_policy: bool,
}

/// Intel Trust Authority.
pub struct IntelTrustAuthority {
    client: Client,
    base_url: String,
    api_key: HeaderValue,
    policy_ids: Vec<String>,
    must_match: bool,
}

impl IntelTrustAuthority {
    /// Prepares a client; nothing is asked yet.
    ///
    /// # Errors
    /// [`Error::Address`] for a URL or key that can't be used, [`Error::Tls`] without the system's authorities.
    pub fn new(settings: IntelSettings) -> Result<Self, Error> {
        let IntelSettings { base_url, api_key, policy_ids, allow_unmatched_policy } = settings;
        let base_url = base_url.trim_end_matches('/').to_owned();
        let unusable = |cause: &str| Error::Address { address: base_url.clone(), cause: cause.to_owned() };
        let url = reqwest::Url::parse(&base_url).map_err(|e| unusable(&chain(&e)))?;
        if !matches!(url.scheme(), "https" | "http") {
            return Err(unusable("it begins neither with http:// nor with https://"));
        }
        let mut api_key = HeaderValue::from_str(&api_key).map_err(|_| unusable("its API key is none"))?;
        api_key.set_sensitive(true);

        // The client asks for the process's provider; if another part installed one already, that one is used.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("trustee/", env!("CARGO_PKG_VERSION")))
            // A redirect would carry the key to a place that the configuration doesn't name.
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .build()
            .map_err(|e| Error::Tls { address: base_url.clone(), cause: chain(&e) })?;
        let must_match = !policy_ids.is_empty() && !allow_unmatched_policy;
        Ok(Self { client, base_url, api_key, policy_ids, must_match })
    }

    /// The hash algorithm that guests must make their report data with, where the service can verify their TEE.
    pub fn hash_algorithm(tee: Tee) -> Option<HashAlgorithm> {
        match tee {
            Tee::Tdx => Some(HashAlgorithm::Sha512),
            Tee::Sgx | Tee::AzTdxVtpm => Some(HashAlgorithm::Sha256),
            _ => None,
        }
    }

    /// Whether a token of the service matches the policies that are asked for, whoever asked the service for it: all
    /// of them, unless unmatched ones are allowed.
    pub fn accepts(&self, claims: &Value) -> bool {
        let matched = claims["policy_ids_matched"].as_array();
        let matches = |id: &String| {
            matched.is_some_and(|matched| matched.iter().any(|policy| policy["id"] == *id || policy == id))
        };
        !self.must_match || self.policy_ids.iter().all(matches)
    }

    /// Has evidence verified, and returns the service's token. The policies are those of the settings, whatever the
    /// evaluation asks for.
    ///
    /// # Errors
    /// [`Error::Evidence`] for what the service does not verify, [`Error::Refused`] for what it refuses;
    /// [`Error::Unreachable`], [`Error::Timeout`], [`Error::Answer`].
    pub async fn evaluate(&self, evaluation: &Evaluation) -> Result<String, Error> {
        let (path, mut body) = body::of(&evaluation.parts)?;
        body.insert("policy_ids".to_owned(), json!(self.policy_ids));
        body.insert("policy_must_match".to_owned(), self.must_match.into());
        let request = self
            .client
            .post(format!("{}{path}", self.base_url))
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json")
            .header("x-api-key", &self.api_key)
            .body(Value::Object(body).to_string());

        let answer = request.send().await.map_err(|e| self.lost(&e))?;
        let status = answer.status();
        let text = self.text(answer).await?;
        if status != StatusCode::OK {
            return Err(self.failure(status, &text));
        }
        let Success { token } = serde_json::from_slice(&text).map_err(|_| self.misunderstood("it has no token"))?;
        Ok(token)
    }

    /// The body of an answer, of bounded length.
    async fn text(&self, mut answer: Response) -> Result<Vec<u8>, Error> {
        let mut text = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|e| self.lost(&e))? {
            if text.len() + chunk.len() > MAX_ANSWER {
                return Err(self.misunderstood("it is longer than a token"));
            }
            text.extend_from_slice(&chunk);
        }
        Ok(text)
    }

    fn failure(&self, status: StatusCode, text: &[u8]) -> Error {
        let address = self.base_url.clone();
        let told = serde_json::from_slice(text).map_or_else(
            |_| status.to_string(),
            |Failure { error }| format!("{status}: {}", error.chars().take(MAX_MESSAGE).collect::<String>()),
        );
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            Error::Unreachable { address, cause: told }
        } else {
            Error::Refused { address, message: told }
        }
    }

    fn lost(&self, error: &reqwest::Error) -> Error {
        let address = self.base_url.clone();
        if error.is_timeout() {
            return Error::Timeout { address, timeout: TIMEOUT };
        }
        Error::Unreachable { address, cause: chain(error) }
    }

    fn misunderstood(&self, cause: &str) -> Error {
        Error::Answer { address: self.base_url.clone(), cause: cause.to_owned() }
    }
}

#[derive(Deserialize)]
struct Success {
    token: String,
}

#[derive(Deserialize)]
struct Failure {
    error: String,
}

const TIMEOUT: Duration = Duration::from_secs(60);
const MAX_ANSWER: usize = 1 << 20;
const MAX_MESSAGE: usize = 500;

#[cfg(test)]
mod tests {
    use super::body::tests::{gpus_of, hcl_report, part, tdx};
    use super::*;
    use attestation::Part;
    use axum::Json;
    use axum::http::{HeaderMap, Uri};
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use std::sync::{Arc, Mutex};

    /// A service that keeps what it is asked, and gives one answer.
    struct Mock {
        asked: Arc<Mutex<Vec<(String, HeaderMap, Value)>>>,
        url: String,
        _serving: tokio::task::JoinSet<()>,
    }

    impl Mock {
        async fn answering(status: StatusCode, answer: String) -> Self {
            let asked = Arc::new(Mutex::new(Vec::new()));
            let seen = asked.clone();
            let router = axum::Router::new().fallback(async move |uri: Uri, headers: HeaderMap, Json(body)| {
                seen.lock().unwrap().push((uri.path().to_owned(), headers, body));
                (status, answer)
            });
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/", listener.local_addr().unwrap());
            let mut serving = tokio::task::JoinSet::new();
            serving.spawn(async { axum::serve(listener, router).await.unwrap() });
            Self { asked, url, _serving: serving }
        }

        fn client(&self, policy_ids: &[&str], allow_unmatched_policy: bool) -> IntelTrustAuthority {
            IntelTrustAuthority::new(IntelSettings {
                base_url: self.url.clone(),
                api_key: Zeroizing::new("the key".to_owned()),
                policy_ids: policy_ids.iter().map(|&id| id.to_owned()).collect(),
                allow_unmatched_policy,
            })
            .unwrap()
        }

        fn asked(&self) -> (String, HeaderMap, Value) {
            self.asked.lock().unwrap().pop().unwrap()
        }
    }

    fn evaluation(parts: Vec<Part>) -> Evaluation {
        Evaluation { parts, policy_id: "default".to_owned() }
    }

    #[tokio::test]
    async fn a_quote_becomes_a_token() {
        let intel = Mock::answering(StatusCode::OK, json!({ "token": "e.y.J" }).to_string()).await;
        let token = intel.client(&["p1"], false).evaluate(&evaluation(vec![tdx()])).await.unwrap();
        assert_eq!(token, "e.y.J");

        let (path, headers, body) = intel.asked();
        assert_eq!(path, "/appraisal/v2/attest");
        assert_eq!(headers["x-api-key"], "the key");
        assert_eq!(headers["accept"], "application/json");
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(body["policy_ids"], json!(["p1"]));
        assert_eq!(body["policy_must_match"], true);
        assert_eq!(body["tdx"]["quote"], "AQID");
        let runtime_data = STANDARD.decode(body["tdx"]["runtime_data"].as_str().unwrap()).unwrap();
        assert_eq!(runtime_data, br#"{"nonce":"n","tee-pubkey":{"kty":"EC"}}"#);
    }

    #[tokio::test]
    async fn policies_need_not_match_where_that_is_allowed_or_there_are_none() {
        let intel = Mock::answering(StatusCode::OK, json!({ "token": "t" }).to_string()).await;
        for (policies, allow) in [(&["p1"][..], true), (&[], false)] {
            let sgx = part(Tee::Sgx, json!({ "quote": "AQID" }));
            intel.client(policies, allow).evaluate(&evaluation(vec![sgx])).await.unwrap();
            let (_, _, body) = intel.asked();
            assert_eq!(body["policy_must_match"], false);
            assert_eq!(body["sgx"]["quote"], "AQID");
        }
    }

    #[tokio::test]
    async fn azure_has_a_path_of_its_own() {
        let intel = Mock::answering(StatusCode::OK, json!({ "token": "t" }).to_string()).await;
        let report = hcl_report(b"{\"keys\":[]}");
        for (report, quote) in [
            (json!(URL_SAFE_NO_PAD.encode(&report)), json!(URL_SAFE_NO_PAD.encode([250, 255]))),
            (json!(report), json!([250, 255])),
        ] {
            let azure = part(Tee::AzTdxVtpm, json!({ "hcl_report": report, "td_quote": quote }));
            intel.client(&[], false).evaluate(&evaluation(vec![azure])).await.unwrap();
            let (path, _, body) = intel.asked();
            assert_eq!(path, "/appraisal/v2/attest/azure");
            assert_eq!(body["tdx"]["quote"], STANDARD.encode([250, 255]));
            assert_eq!(body["tdx"]["runtime_data"], STANDARD.encode("{\"keys\":[]}"));
            assert!(body["tdx"]["user_data"].is_string());
        }
    }

    #[tokio::test]
    async fn gpus_go_with_their_machine() {
        let intel = Mock::answering(StatusCode::OK, json!({ "token": "t" }).to_string()).await;
        let parts = vec![tdx(), gpus_of(&["HOPPER", "LS10", "HOPPER"])];
        intel.client(&[], false).evaluate(&evaluation(parts)).await.unwrap();
        let (_, _, body) = intel.asked();
        assert_eq!(body["nvgpu"]["arch"], "hopper");
        assert_eq!(body["nvgpu"]["gpu_nonce"].as_str().unwrap().len(), 64);
        assert_eq!(body["nvgpu"]["evidence_list"].as_array().unwrap().len(), 2);
        assert_eq!(body["nvgpu"]["evidence_list"][0], json!({ "evidence": "0a", "certificate": "Y2VydA==" }));

        intel.client(&[], false).evaluate(&evaluation(vec![tdx(), gpus_of(&["LS10"])])).await.unwrap();
        assert_eq!(intel.asked().2.get("nvgpu"), None);
    }

    #[tokio::test]
    async fn a_failure_is_told_in_the_services_words() {
        for (status, answer, told, unreachable) in [
            (StatusCode::BAD_REQUEST, json!({ "error": "bad quote" }).to_string(), "bad quote", false),
            (StatusCode::UNAUTHORIZED, "<html>".to_owned(), "401", false),
            (StatusCode::SERVICE_UNAVAILABLE, json!({ "error": "busy" }).to_string(), "busy", true),
            (StatusCode::TOO_MANY_REQUESTS, String::new(), "429", true),
        ] {
            let intel = Mock::answering(status, answer).await;
            let error = intel.client(&[], false).evaluate(&evaluation(vec![tdx()])).await.unwrap_err();
            assert_eq!(matches!(error, Error::Unreachable { .. }), unreachable, "{error}");
            assert_eq!(matches!(error, Error::Refused { .. }), !unreachable, "{error}");
            let text = error.to_string();
            assert!(text.contains(told) && !text.contains("the key"), "{text}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_none_is_an_error() {
        let long = json!({ "token": "t".repeat(MAX_ANSWER) }).to_string();
        for answer in [String::new(), json!({ "token": 1 }).to_string(), long] {
            let intel = Mock::answering(StatusCode::OK, answer).await;
            let error = intel.client(&[], false).evaluate(&evaluation(vec![tdx()])).await.unwrap_err();
            assert!(matches!(error, Error::Answer { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn a_token_of_somebody_else_s_policies_is_not_accepted() {
        let client = |policy_ids: &[&str], allow_unmatched_policy| {
            IntelTrustAuthority::new(IntelSettings {
                base_url: "https://intel".to_owned(),
                api_key: Zeroizing::new("the key".to_owned()),
                policy_ids: policy_ids.iter().map(|&id| id.to_owned()).collect(),
                allow_unmatched_policy,
            })
            .unwrap()
        };
        let matched = json!({ "policy_ids_matched": [{ "id": "a", "version": "v1" }] });
        for (policy_ids, allow, claims, expected) in [
            (["a"].as_slice(), false, &matched, true),
            (&["a", "b"], false, &matched, false),
            (&["b"], false, &matched, false),
            (&["b"], true, &matched, true),
            (&[], false, &matched, true),
            (&["a"], false, &json!({}), false),
            (&["a"], false, &json!({ "policy_ids_matched": "a" }), false),
        ] {
            assert_eq!(client(policy_ids, allow).accepts(claims), expected, "{policy_ids:?} {allow} {claims}");
        }
    }

    #[test]
    fn settings_that_can_not_be_used_are_refused() {
        for (base_url, api_key) in [("intel", "k"), ("ftp://intel", "k"), ("https://intel", "k\n")] {
            let settings = IntelSettings {
                base_url: base_url.to_owned(),
                api_key: Zeroizing::new(api_key.to_owned()),
                policy_ids: Vec::new(),
                allow_unmatched_policy: false,
            };
            assert!(matches!(IntelTrustAuthority::new(settings), Err(Error::Address { .. })), "{base_url}");
        }
    }
}
