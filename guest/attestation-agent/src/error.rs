//! Why attestation or a resource failed: stage, cause, next step. No secret and no token is ever part of a text.

use std::fmt;

use crate::config::ConfigError;
use crate::event_log;

/// A failure. It is `Clone` because all callers that waited for one handshake get its outcome.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// There is no key broker to ask.
    #[error("attestation: no KBS is configured; next: set token_configs.kbs.url in aa.toml of the initdata")]
    NoKbs,
    /// There is no attestation service to ask.
    #[error(
        "attestation: no attestation service is configured; next: set token_configs.coco_as.url in aa.toml of the initdata"
    )]
    NoAttestationService,
    /// The configuration can't be used.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// No connection, or it broke. Worth another attempt.
    #[error("{stage}: {call}: {cause}; next: check that the server runs and that the guest's network reaches it")]
    Unreachable {
        /// Where it happened.
        stage: Stage,
        /// Method and URL.
        call: String,
        /// The transport's error.
        cause: String,
    },
    /// TLS failed, so another attempt would as well.
    #[error(
        "{stage}: {call}: TLS: {cause}; next: put the PEM of the CA that signed the server's certificate into token_configs.kbs.cert, and check the names in the certificate and the guest's clock"
    )]
    Tls {
        /// Where it happened.
        stage: Stage,
        /// Method and URL.
        call: String,
        /// The TLS error.
        cause: String,
    },
    /// All attempts together took too long.
    #[error("{stage}: no answer from {url} within {seconds} s; next: check the server's load and its log")]
    Deadline {
        /// Where it happened.
        stage: Stage,
        /// Base URL.
        url: String,
        /// The limit.
        seconds: u64,
    },
    /// The server answered and refused.
    #[error("{stage}: {call} answered {status} {kind}: {detail}{}", advice(*stage, detail))]
    Refused {
        /// Where it happened.
        stage: Stage,
        /// Method and URL.
        call: String,
        /// HTTP status.
        status: u16,
        /// The variant of the server's error, or the reason phrase of the status.
        kind: String,
        /// The server's own words.
        detail: String,
    },
    /// The key broker has no such resource.
    #[error(
        "resource: {call} answered 404 {kind}: {detail}; next: check the resource's name, and store it in the KBS if it is missing"
    )]
    NotFound {
        /// Method and URL.
        call: String,
        /// The variant of the server's error.
        kind: String,
        /// The server's own words.
        detail: String,
    },
    /// The answer is not what the protocol says.
    #[error(
        "{stage}: {call}: the answer can't be used: {cause}; next: check that this URL is a KBS of protocol {}",
        wire::rcar::VERSION
    )]
    Answer {
        /// Where it happened.
        stage: Stage,
        /// Method and URL.
        call: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The attester failed.
    #[error("attestation evidence: {0}")]
    Evidence(#[from] evidence::Error),
    /// The event log can't be opened, or an event not be measured.
    #[error(transparent)]
    EventLog(#[from] event_log::Error),
    /// The guest is bound to another initdata than it is asked to bind.
    #[error("initdata: this guest is bound to another document already; next: restart it to bind a new one")]
    BoundAlready,
    /// A kind of token that there is not.
    #[error("token type \"{0}\" is not known; next: ask for kbs or coco_as")]
    TokenType(String),
    /// The guest's key can't be made or used.
    #[error("attestation key: {0}")]
    Key(String),
    /// The task of the handshake ended without an outcome.
    #[error("attestation: the handshake was given up: {0}")]
    GivenUp(String),
}

impl Error {
    /// True if the same call may succeed a moment later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => matches!(status, 429 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// True if the key broker does not accept the token, and a new one may help.
    ///
    /// Upstream's KBS says 401 for denials by policy and for missing resources as well; a handshake is no cure there.
    pub(crate) fn is_stale_token(&self) -> bool {
        matches!(self, Self::Refused { stage: Stage::Resource, status: 401, kind, .. }
            if !matches!(kind.as_str(), "PolicyDeny" | "PluginInternalError"))
    }

    /// True if the call itself was wrong, and would fail for everybody.
    pub fn is_of_the_caller(&self) -> bool {
        match self {
            Self::TokenType(_) | Self::Evidence(evidence::Error::ReportData { .. }) => true,
            Self::EventLog(error) => error.is_of_the_caller(),
            _ => false,
        }
    }

    /// True if somebody who could have answered refused: the evidence, the token or the resource.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Refused { status: 401 | 403, .. })
    }

    /// True if the answer did not come in time.
    pub fn is_late(&self) -> bool {
        matches!(self, Self::Deadline { .. })
    }

    /// True if nobody answered, as opposed to an answer that says no.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Tls { .. } | Self::Deadline { .. }) || self.is_transient()
    }
}

/// The part of the protocol in which something failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// `POST /auth`: asking for the challenge.
    Auth,
    /// `POST /attest`: showing the evidence.
    Attest,
    /// `GET` of a resource with the token.
    Resource,
    /// Asking the attestation service directly.
    AttestationService,
}

impl Stage {
    fn next(self) -> &'static str {
        match self {
            Self::Auth => {
                "check that KBS and guest speak the same protocol version and that the KBS accepts this kind of TEE"
            }
            Self::Attest => {
                "look up the denied claim in the KBS's audit log; reference values may be missing, or this kind of TEE (sample?) may be off"
            }
            Self::Resource => {
                "check that the resource exists and that the KBS's resource policy allows it for this guest"
            }
            Self::AttestationService => "look up the cause in the attestation service's log",
        }
    }
}

/// The next step, unless the server has named one: a broker of ours says how its owner gets an explanation.
fn advice(stage: Stage, detail: &str) -> String {
    if detail.contains("kbs-client explain") { String::new() } else { format!("; next: {}", stage.next()) }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auth => "attestation challenge",
            Self::Attest => "attestation",
            Self::Resource => "resource",
            Self::AttestationService => "attestation service",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_stage_call_cause_and_next_step() {
        let error = refused(Stage::Attest, 401, "RcarAttestFailed");
        assert!(
            error
                .to_string()
                .starts_with("attestation: POST https://kbs/x answered 401 RcarAttestFailed: no; next: look up"),
            "{error}"
        );
    }

    #[test]
    fn the_server_s_next_step_is_not_followed_by_another() {
        let told = "resource policy refused; reference 17: the owner can run kbs-client explain --reference 17";
        let Error::Refused { stage, call, status, kind, .. } = refused(Stage::Resource, 403, "PolicyDeny") else {
            unreachable!()
        };
        let error = Error::Refused { stage, call, status, kind, detail: told.to_owned() };
        assert!(error.to_string().ends_with(&format!("403 PolicyDeny: {told}")), "{error}");
    }

    #[test]
    fn the_page_about_troubles_has_these_texts() {
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/troubleshooting.md"));
        let refused = |stage, call: &str, status, kind: &str| Error::Refused {
            stage,
            call: call.to_owned(),
            status,
            kind: kind.to_owned(),
            detail: "no".to_owned(),
        };
        for error in [
            Error::NoKbs,
            Error::Unreachable {
                stage: Stage::Auth,
                call: "POST https://kbs/kbs/v0/auth".to_owned(),
                cause: "connection refused".to_owned(),
            },
            refused(Stage::Attest, "POST https://kbs/kbs/v0/attest", 401, "RcarAttestFailed"),
            refused(Stage::Resource, "GET https://kbs/kbs/v0/resource/default/key/1", 403, "PolicyDeny"),
        ] {
            assert!(page.contains(&format!("`{error}`")), "the page lacks: {error}");
        }
    }

    #[test]
    fn only_a_refused_token_calls_for_a_new_one() {
        for (stage, status, kind, stale) in [
            (Stage::Resource, 401, "TokenVerifierError", true),
            (Stage::Resource, 401, "Unauthorized", true),
            (Stage::Resource, 401, "PolicyDeny", false),
            (Stage::Resource, 401, "PluginInternalError", false),
            (Stage::Resource, 403, "PolicyDeny", false),
            (Stage::Attest, 401, "RcarAttestFailed", false),
        ] {
            assert_eq!(refused(stage, status, kind).is_stale_token(), stale, "{stage} {status} {kind}");
        }
    }

    #[test]
    fn an_overloaded_server_is_asked_again() {
        for (status, transient) in [(503, true), (502, true), (429, true), (500, false), (403, false)] {
            assert_eq!(refused(Stage::Auth, status, "x").is_transient(), transient, "{status}");
        }
    }

    fn refused(stage: Stage, status: u16, kind: &str) -> Error {
        Error::Refused {
            stage,
            call: "POST https://kbs/x".to_owned(),
            status,
            kind: kind.to_owned(),
            detail: "no".to_owned(),
        }
    }
}
