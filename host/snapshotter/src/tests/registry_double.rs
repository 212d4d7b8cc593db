//! A registry of one image that counts what it is asked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use aws_lc_rs::digest::{SHA256, digest};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(super) struct RegistryDouble {
    pub(super) host: String,
    state: Arc<Content>,
    server: JoinHandle<()>,
}

struct Content {
    documents: HashMap<String, Vec<u8>>,
    requests: Mutex<Vec<String>>,
    /// The account that is wanted, if one is.
    account: Option<&'static str>,
    /// Blobs are sent once this is open.
    gate: watch::Sender<bool>,
    host: String,
}

/// What the image consists of.
pub(super) struct Digests {
    pub(super) index: String,
    pub(super) manifest: String,
    pub(super) config: String,
    pub(super) layers: Vec<String>,
}

impl Digests {
    pub(super) fn all(&self) -> Vec<&String> {
        [&self.index, &self.manifest, &self.config].into_iter().chain(&self.layers).collect()
    }
}

impl RegistryDouble {
    /// Serves an image of these layers below `app`. With `lie`, its last layer comes with other bytes.
    pub(super) async fn with(layers: &[Vec<u8>], account: Option<&'static str>, lie: bool) -> (Self, Digests) {
        let mut documents = HashMap::new();
        let mut put = |kind: &str, bytes: Vec<u8>| {
            let digest = sha256(&bytes);
            documents.insert(format!("/v2/app/{kind}/{digest}"), bytes);
            digest
        };
        let config = b"{\"os\":\"linux\"}".to_vec();
        let size = config.len();
        let config = put("blobs", config);
        let layers: Vec<_> = layers.iter().map(|layer| (layer.len(), put("blobs", layer.clone()))).collect();
        let described: Vec<_> = layers.iter().map(|(size, digest)| descriptor(digest, *size)).collect();
        let manifest = json!({ "schemaVersion": 2, "config": descriptor(&config, size), "layers": described });
        let manifest = put("manifests", manifest.to_string().into_bytes());
        let index = json!({ "schemaVersion": 2, "manifests": [descriptor(&manifest, 1)] });
        let index = put("manifests", index.to_string().into_bytes());
        let layers: Vec<_> = layers.into_iter().map(|(_, digest)| digest).collect();
        if lie {
            let last = documents.get_mut(&format!("/v2/app/blobs/{}", layers.last().unwrap())).unwrap();
            *last.last_mut().unwrap() ^= 1;
        }

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (gate, requests) = (watch::channel(true).0, Mutex::default());
        let state = Arc::new(Content { documents, requests, account, gate, host: host.clone() });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&state));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (Self { host, state, server }, Digests { index, manifest, config, layers })
    }

    /// How often something was asked for whose path ends like this.
    pub(super) fn count(&self, end: &str) -> usize {
        self.requests().iter().filter(|path| path.ends_with(end)).count()
    }

    pub(super) fn requests(&self) -> Vec<String> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Holds blobs back, or lets them go.
    pub(super) fn open(&self, open: bool) {
        self.state.gate.send_replace(open);
    }
}

impl Drop for RegistryDouble {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(State(state): State<Arc<Content>>, request: Request<Body>) -> Response {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default();
    let authorization = request.headers().get("authorization").map_or("-", |it| it.to_str().unwrap());
    if let Some(account) = state.account {
        if path == "/token" {
            assert!(query.contains("service=s&scope=repository%3Aapp%3Apull"), "{query}");
            let granted = if authorization == account { "good" } else { "bad" };
            return json!({ "token": granted }).to_string().into_response();
        }
        if authorization != "Bearer good" {
            let challenge = format!("Bearer realm=\"http://{}/token\",service=\"s\"", state.host);
            return (StatusCode::UNAUTHORIZED, [("WWW-Authenticate", challenge)]).into_response();
        }
    }
    let separator = if query.is_empty() { "" } else { "?" };
    state.requests.lock().unwrap().push(format!("{path}{separator}{query}"));
    if path.contains("/blobs/") {
        state.gate.subscribe().wait_for(|open| *open).await.unwrap();
    }
    match state.documents.get(&path) {
        Some(bytes) => bytes.clone().into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn descriptor(digest: &str, size: usize) -> serde_json::Value {
    json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size })
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(digest(&SHA256, bytes)))
}
