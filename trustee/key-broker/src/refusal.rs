//! Every way in which a request is refused: its HTTP status, upstream's name for it, and what the client is told.

use attestation::Kind;
use hyper::StatusCode;
use reference_values::Kind as Reference;
use resource_backends::Kind as Backend;
use wire::rcar::ErrorInformation;

use crate::attester::Cause;
use crate::{admin, audit, resource_policy, session};

/// Why a request was refused. The text goes to the client: it names stage, cause and next step, and no expected value.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("there is nothing at this path: the API is /kbs/v0/")]
    Path,
    #[error("this path has no such method")]
    Method,
    #[error("no plugin \"{0}\" in this Trustee")]
    Plugin(String),
    #[error("the request body is larger than {0} bytes")]
    TooLarge(usize),
    #[error("too many requests at once: try again later")]
    Busy,
    #[error("the request took too long to arrive or to answer: try again")]
    Slow,
    #[error("the request body can't be read: {0}")]
    Body(String),
    #[error("protocol version \"{0}\" is not spoken here, only {version} is", version = wire::rcar::VERSION)]
    Version(String),
    #[error("attestation: {0}")]
    Tee(attestation::Error),
    #[error("attestation: no session: start with POST /kbs/v0/auth and send its cookie back")]
    NoSession,
    #[error("session: {0}")]
    Session(#[from] session::Error),
    #[error("attestation: the nonce is not the one of this session: start again with POST /kbs/v0/auth")]
    Nonce,
    #[error("attestation: tee-pubkey: {0}")]
    TeeKey(wire::jwe::Error),
    #[error(
        "attestation: {cause}; reference {reference}: the owner can run kbs-client explain --reference {reference}"
    )]
    Attestation { cause: Cause, reference: String },
    #[error(
        "attestation-policy-selector \"{0}\" leads to no attestation policy: ask the Trustee's owner which ones do"
    )]
    Selector(String),
    #[error("attestation: this TEE needs the hash algorithm {0}: offer it in supported-hash-algorithms")]
    HashAlgorithm(String),
    #[error("attestation: Intel Trust Authority has no verifier for the TEE {0}")]
    IntelTee(wire::rcar::Tee),
    #[error("attestation request: {0}")]
    AuthBody(String),
    #[error("attestation: {0}")]
    AttestBody(String),
    #[error(
        "this Trustee verifies no evidence: attest where its tokens come from, and send one as Authorization: Bearer"
    )]
    NoAttestation,
    #[error("this Trustee trusts no keys of attestation services: its owner can name some under [attestation_token]")]
    NoTrust,
    #[error("attestation token: {0}")]
    ForeignToken(token_verifier::Error),
    #[error("attestation token: it matches none of the policies that this Trustee asks Intel Trust Authority for")]
    Unmatched,
    #[error("{0}")]
    Service(attestation_api::Error),
    #[error("the service that keeps this lies elsewhere and has no such function: ask it directly")]
    Elsewhere,
    #[error("If-Match takes one ETag in double quotes, If-None-Match takes *, and a request has one of them at most")]
    Precondition,
    #[error("it was changed by someone else since: read it again and repeat the change")]
    Changed,
    #[error("conditions are not possible where this is kept: leave out If-Match and If-None-Match")]
    Condition,
    #[error("query: {0} is not a number")]
    Query(String),
    #[error("no policy of this id, or not at this version")]
    NoPolicy,
    #[error(transparent)]
    Backend(#[from] resource_backends::Error),
    #[error(transparent)]
    PluginFailed(#[from] ::plugins::Error),
    #[error("the plugin answered with {0}, which is no HTTP status")]
    PluginStatus(u16),
    #[error("not ready: the store does not tell what other replicas change: try again later")]
    NotReady,
    #[error("no attestation token: attest first, or send one as Authorization: Bearer")]
    NoToken,
    #[error(transparent)]
    Token(#[from] attestation::token::Error),
    #[error("Access denied by policy; reference {0}: the owner can run kbs-client explain --reference {0}")]
    Policy(String),
    #[error("administration: {0}")]
    Admin(#[from] admin::Error),
    #[error("there is no resource {0}: the owner can set it with kbs-client config set-resource")]
    NoResource(wire::resource::ResourcePath),
    #[error(transparent)]
    ResourceName(#[from] wire::resource::Error),
    #[error("no reference value of this name")]
    NoReferenceValue,
    #[error("no refusal of this reference in the last 24 hours; older ones are in the audit log")]
    NoReference,
    #[error(transparent)]
    ResourcePolicy(#[from] resource_policy::Error),
    #[error(transparent)]
    AttestationPolicy(attestation::Error),
    #[error(transparent)]
    ReferenceValue(#[from] reference_values::Error),
    #[error("the secret can't be sealed to the guest's key: {0}")]
    Seal(wire::jwe::Error),
    #[error("the store does not answer: try again later")]
    Store(#[from] store::Error),
    #[error("the audit log can't be written, and no secret is released without it: try again later")]
    Audit(#[from] audit::Error),
}

impl Refusal {
    /// The HTTP status. Guests attest again on 401, and on no other.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Path | Self::Plugin(_) | Self::NoResource(_) | Self::NoReferenceValue | Self::NoReference => {
                StatusCode::NOT_FOUND
            }
            Self::NoPolicy | Self::NoAttestation | Self::Elsewhere => StatusCode::NOT_FOUND,
            Self::Precondition | Self::Query(_) | Self::Selector(_) => StatusCode::BAD_REQUEST,
            Self::HashAlgorithm(_) | Self::AuthBody(_) | Self::AttestBody(_) => StatusCode::BAD_REQUEST,
            Self::Changed => StatusCode::PRECONDITION_FAILED,
            Self::Condition => StatusCode::NOT_IMPLEMENTED,
            Self::Service(_) | Self::PluginStatus(_) => StatusCode::BAD_GATEWAY,
            Self::NotReady => StatusCode::SERVICE_UNAVAILABLE,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Body(_) | Self::Version(_) | Self::TeeKey(_) | Self::ResourceName(_) => StatusCode::BAD_REQUEST,
            Self::NoSession | Self::Nonce | Self::NoToken | Self::Token(_) | Self::NoTrust => StatusCode::UNAUTHORIZED,
            Self::Unmatched => StatusCode::FORBIDDEN,
            Self::ForeignToken(cause) => of_token(cause),
            Self::Session(session::Error::Store(_)) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Session(_) | Self::Admin(admin::Error::NoToken | admin::Error::NoRole) => StatusCode::UNAUTHORIZED,
            Self::Admin(admin::Error::Token(cause)) => of_token(cause),
            Self::PluginFailed(cause) => {
                StatusCode::from_u16(cause.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }
            Self::Tee(_) | Self::IntelTee(_) | Self::Policy(_) | Self::Admin(_) => StatusCode::FORBIDDEN,
            Self::Attestation { cause: Cause::Evidence(cause), .. } => of_attestation(cause.kind()),
            Self::Attestation { .. } => StatusCode::BAD_GATEWAY,
            Self::AttestationPolicy(cause) => of_attestation(cause.kind()),
            Self::ResourcePolicy(resource_policy::Error::Store(store::Error::Conflict { .. })) => {
                StatusCode::PRECONDITION_FAILED
            }
            Self::ResourcePolicy(resource_policy::Error::Store(_) | resource_policy::Error::Busy(_)) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::ResourcePolicy(_) => StatusCode::BAD_REQUEST,
            Self::Backend(cause) => match cause.kind() {
                Backend::BadRequest => StatusCode::BAD_REQUEST,
                Backend::Conflict => StatusCode::PRECONDITION_FAILED,
                Backend::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
                Backend::Internal => StatusCode::BAD_GATEWAY,
            },
            Self::ReferenceValue(cause) => match cause.kind() {
                Reference::BadRequest => StatusCode::BAD_REQUEST,
                Reference::Forbidden => StatusCode::FORBIDDEN,
                Reference::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
                Reference::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            },
            Self::Seal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Store(store::Error::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Store(_) | Self::Audit(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The body, in upstream's form.
    pub fn information(&self) -> ErrorInformation {
        ErrorInformation::new(self.variant(), self.to_string())
    }

    fn variant(&self) -> &'static str {
        match self {
            Self::Path | Self::Method => "InvalidRequestPath",
            Self::Plugin(_) => "PluginNotFound",
            Self::TooLarge(_) | Self::Slow | Self::Busy | Self::NotReady => "HTTPFailed",
            Self::Precondition | Self::Changed | Self::Condition | Self::Query(_) => "HTTPFailed",
            Self::Body(_) => "SerdeError",
            Self::Version(_) | Self::Tee(_) | Self::Selector(_) | Self::HashAlgorithm(_) => "RcarAuthFailed",
            Self::IntelTee(_) | Self::AuthBody(_) => "RcarAuthFailed",
            Self::AttestBody(_) => "RcarAttestFailed",
            Self::NoAttestation => "AttestationError",
            Self::NoSession | Self::Session(_) | Self::Nonce | Self::TeeKey(_) | Self::Attestation { .. } => {
                "RcarAttestFailed"
            }
            Self::NoToken => "TokenNotFound",
            Self::Token(_) | Self::ForeignToken(_) | Self::NoTrust | Self::Unmatched => "TokenVerifierError",
            Self::Policy(_) => "PolicyDeny",
            Self::Admin(_) => "AdminAuthAccess",
            Self::NoResource(_) | Self::ResourceName(_) | Self::NoReference | Self::Backend(_) => "PluginInternalError",
            Self::PluginFailed(_) | Self::PluginStatus(_) => "PluginInternalError",
            Self::Store(_) | Self::Audit(_) => "PluginInternalError",
            Self::NoReferenceValue | Self::ReferenceValue(_) | Self::Service(_) | Self::Elsewhere => "RvpsError",
            Self::ResourcePolicy(_) | Self::AttestationPolicy(_) | Self::NoPolicy => "ParsePolicyError",
            Self::Seal(_) => "JweError",
        }
    }
}

fn of_token(cause: &token_verifier::Error) -> StatusCode {
    match cause.kind() {
        token_verifier::Kind::Refused => StatusCode::UNAUTHORIZED,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn of_attestation(kind: Kind) -> StatusCode {
    match kind {
        Kind::BadRequest => StatusCode::BAD_REQUEST,
        Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::Conflict => StatusCode::PRECONDITION_FAILED,
        Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
