//! Every way in which a request is refused: its HTTP status, upstream's name for it, and what the client is told.

use hyper::StatusCode;
use wire::rcar::ErrorInformation;

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
    Attestation { cause: attestation::Error, reference: String },
    #[error("no attestation token: attest first, or send one as Authorization: Bearer")]
    NoToken,
    #[error(transparent)]
    Token(#[from] attestation::token::Error),
    #[error("resource policy refused; reference {0}: the owner can run kbs-client explain --reference {0}")]
    Policy(String),
    #[error("administration: {0}")]
    Admin(#[from] admin::Error),
    #[error("there is no resource {0}: the owner can set it with kbs-client config set-resource")]
    NoResource(wire::resource::ResourcePath),
    #[error(transparent)]
    ResourceName(#[from] wire::resource::Error),
    #[error("no reference value of this name")]
    NoReferenceValue,
    #[error("no refusal of this reference among the last {max}", max = audit::MAX_REFUSALS)]
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
        use attestation::Error as A;
        match self {
            Self::Path | Self::Plugin(_) | Self::NoResource(_) | Self::NoReferenceValue | Self::NoReference => {
                StatusCode::NOT_FOUND
            }
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Body(_) | Self::Version(_) | Self::TeeKey(_) | Self::ResourceName(_) => StatusCode::BAD_REQUEST,
            Self::NoSession | Self::Nonce | Self::NoToken | Self::Token(_) => StatusCode::UNAUTHORIZED,
            Self::Session(session::Error::Store(_)) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Session(_) | Self::Admin(admin::Error::NoToken) => StatusCode::UNAUTHORIZED,
            Self::Tee(_) | Self::Policy(_) | Self::Admin(_) => StatusCode::FORBIDDEN,
            Self::Attestation { cause, .. } | Self::AttestationPolicy(cause) => match cause {
                A::Evidence(attestation::verifier::Error::Malformed(_)) | A::InitData(_) | A::RuntimeData(_) => {
                    StatusCode::BAD_REQUEST
                }
                A::AdditionalEvidence | A::PolicyId(_) | A::TooManyPolicies(_) => StatusCode::BAD_REQUEST,
                A::Policy(_) if matches!(self, Self::AttestationPolicy(_)) => StatusCode::BAD_REQUEST,
                A::Evidence(_) => StatusCode::FORBIDDEN,
                A::Token(attestation::token::Error::TooLarge) => StatusCode::PAYLOAD_TOO_LARGE,
                A::PolicyStore(_) => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            },
            Self::ResourcePolicy(resource_policy::Error::Store(_)) => StatusCode::SERVICE_UNAVAILABLE,
            Self::ResourcePolicy(_) => StatusCode::BAD_REQUEST,
            Self::ReferenceValue(reference_values::Error::Store(_)) => StatusCode::SERVICE_UNAVAILABLE,
            Self::ReferenceValue(_) => StatusCode::BAD_REQUEST,
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
            Self::TooLarge(_) | Self::Slow | Self::Busy => "HTTPFailed",
            Self::Body(_) => "SerdeError",
            Self::Version(_) | Self::Tee(_) => "RcarAuthFailed",
            Self::NoSession | Self::Session(_) | Self::Nonce | Self::TeeKey(_) | Self::Attestation { .. } => {
                "RcarAttestFailed"
            }
            Self::NoToken => "TokenNotFound",
            Self::Token(_) => "TokenVerifierError",
            Self::Policy(_) => "PolicyDeny",
            Self::Admin(_) => "AdminAuthAccess",
            Self::NoResource(_) | Self::ResourceName(_) | Self::NoReference => "PluginInternalError",
            Self::Store(_) | Self::Audit(_) => "PluginInternalError",
            Self::NoReferenceValue | Self::ReferenceValue(_) => "RvpsError",
            Self::ResourcePolicy(_) | Self::AttestationPolicy(_) => "ParsePolicyError",
            Self::Seal(_) => "JweError",
        }
    }
}
