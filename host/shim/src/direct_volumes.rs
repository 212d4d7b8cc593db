//! What storage drivers ask a running pod about its volumes, on the management socket.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use hyper::{Method, StatusCode};
use management::{Answer, Request};
use serde_json::json;

use crate::Error;
use crate::shim::Shim;

/// Answers `/direct-volume/stats?path=` with base64url of a volume's path, and `/direct-volume/resize`; nothing for any other
/// path.
pub(crate) async fn answer(shim: &Shim, request: &Request) -> Option<Answer> {
    let known = [Method::POST, Method::GET].contains(&request.method);
    match request.path.as_str() {
        "/direct-volume/stats" | "/direct-volume/resize" if !known => {
            Some((StatusCode::METHOD_NOT_ALLOWED, "only GET and POST".to_owned()))
        }
        "/direct-volume/stats" => Some(match stats(shim, &request.query).await {
            Ok(text) => (StatusCode::OK, text),
            Err(error @ Error::Request(_)) => (StatusCode::BAD_REQUEST, error.to_string()),
            Err(error @ Error::NotFound(_)) => (StatusCode::NOT_FOUND, error.to_string()),
            Err(error @ Error::Denied { .. }) => (StatusCode::FORBIDDEN, error.to_string()),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }),
        "/direct-volume/resize" => Some((StatusCode::NOT_IMPLEMENTED, NO_RESIZE.to_owned())),
        _ => None,
    }
}

/// The form that Kata's tools print.
async fn stats(shim: &Shim, query: &str) -> Result<String, Error> {
    let missing = || Error::Request("path is missing; next: give base64url of the volume's path".to_owned());
    let encoded = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "path").ok_or_else(missing)?.1;
    let decoded = URL_SAFE.decode(encoded.as_bytes()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let volume = decoded.ok_or_else(missing)?;
    let stats = shim.pod()?.volume_stats(volume.as_ref()).await?;
    let usage = stats
        .usage
        .iter()
        .map(|it| json!({"available": it.available, "total": it.total, "used": it.used, "unit": it.unit.value()}));
    let condition = json!({"abnormal": stats.volume_condition.abnormal, "message": stats.volume_condition.message});
    Ok(json!({"usage": usage.collect::<Vec<_>>(), "volume_condition": condition}).to_string())
}

const NO_RESIZE: &str = "direct volume: a disk that a guest has can't grow; next: remove the pod, grow device and file \
    system, and start the pod again";
