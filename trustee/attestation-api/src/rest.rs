//! The attestation service over REST.

use std::sync::Arc;

use attestation::{AttestationService, Kind};
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use store::If;
use tower_http::cors::CorsLayer;
use wire::rcar::Tee;

use crate::evaluation::{Malformed, RestRequest, policy_text};
use crate::grpc::chain;
use crate::health::Serving;
use crate::{MAX_REQUEST, well_known};

/// The attestation service. Pages of `allowed_origin` may call it from a browser, other pages may not.
///
/// | Route | Body | Answer |
/// |---|---|---|
/// | `POST /attestation` | `verification_requests`, `policy_ids` | the token |
/// | `POST /policy` | `policy_id`, `policy` in base64url | nothing |
/// | `GET /policy` | | a list of objects with `policy-id` |
/// | `GET /policy/ID`, `DELETE /policy/ID` | | the policy's text, nothing |
/// | `POST /challenge` | `tee`, `tee_params` | the challenge |
/// | `GET /.well-known/jwks.json`, `GET /.well-known/openid-configuration` | | keys of tokens |
/// | `GET /healthz`, `GET /readyz` | | 200, or 503 while not ready |
///
/// Bodies are JSON and say so, which keeps other sites' pages from posting them. An error is a line of text under
/// its status: 400 for what can't be read, 403 for evidence that is refused, 404, 413, 415, 500, 503.
pub fn rest_attestation_service(
    service: Arc<AttestationService>,
    allowed_origin: Option<HeaderValue>,
    Serving { ready, scheme }: Serving,
) -> Router {
    let router = Router::new()
        .route("/attestation", post(evaluate))
        .route("/policy", get(policies).post(set_policy))
        .route("/policy/{id}", get(policy).delete(delete_policy))
        .route("/challenge", post(challenge))
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .with_state(service.clone())
        .merge(well_known::router(service, scheme))
        .route("/healthz", get(|| async {}))
        .route("/readyz", get(async move || if ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }));
    match allowed_origin {
        Some(origin) => router.layer(
            CorsLayer::new()
                .allow_origin(origin)
                .allow_methods([Method::GET, Method::POST, Method::DELETE])
                .allow_headers([CONTENT_TYPE]),
        ),
        None => router,
    }
}

type Service = State<Arc<AttestationService>>;
type Body<T> = Result<Json<T>, JsonRejection>;

async fn evaluate(State(service): Service, body: Body<RestRequest>) -> Result<String, Refusal> {
    let evaluation = body?.0.evaluation()?;
    Ok(service.evaluate(evaluation).await?.token)
}

#[derive(Deserialize)]
struct SetPolicy {
    policy_id: String,
    policy: String,
}

async fn set_policy(State(service): Service, body: Body<SetPolicy>) -> Result<(), Refusal> {
    let SetPolicy { policy_id, policy } = body?.0;
    service.set_policy(&policy_id, policy_text(&policy)?, If::Any).await?;
    Ok(())
}

async fn policies(State(service): Service) -> Json<Value> {
    Json(service.policies().into_iter().map(|policy| json!({ "policy-id": policy.id })).collect())
}

async fn policy(State(service): Service, Path(id): Path<String>) -> Result<String, Refusal> {
    let (text, _) = service.policy(&id, None).await?.ok_or(Refusal::no_policy())?;
    Ok(text)
}

async fn delete_policy(State(service): Service, Path(id): Path<String>) -> Result<(), Refusal> {
    let deleted = service.delete_policy(&id, If::Any).await?;
    deleted.then_some(()).ok_or(Refusal::no_policy())
}

#[derive(Deserialize)]
struct Challenge {
    tee: String,
    #[serde(default)]
    tee_params: String,
}

async fn challenge(State(service): Service, body: Body<Challenge>) -> Result<String, Refusal> {
    let Challenge { tee, tee_params } = body?.0;
    let tee: Tee = tee.parse().map_err(Malformed::Tee)?;
    Ok(service.challenge(tee, &tee_params)?)
}

/// Status and text of an error.
struct Refusal(StatusCode, String);

impl Refusal {
    fn no_policy() -> Self {
        Self(StatusCode::NOT_FOUND, "there is no such policy".to_owned())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(status, text) = self;
        tracing::warn!(status = status.as_u16(), "refused: {text}");
        // Clients of upstream's service look for these words.
        let prefix = if status == StatusCode::INTERNAL_SERVER_ERROR { "An internal error occured: " } else { "" };
        (status, format!("{prefix}{text}")).into_response()
    }
}

impl From<Malformed> for Refusal {
    fn from(error: Malformed) -> Self {
        Self(StatusCode::BAD_REQUEST, chain(&error))
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        let status = match rejection.status() {
            StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
            status => status,
        };
        Self(status, rejection.body_text())
    }
}

impl From<attestation::Error> for Refusal {
    fn from(error: attestation::Error) -> Self {
        let status = match error.kind() {
            Kind::BadRequest => StatusCode::BAD_REQUEST,
            Kind::Forbidden => StatusCode::FORBIDDEN,
            Kind::Conflict => StatusCode::CONFLICT,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, chain(&error))
    }
}
