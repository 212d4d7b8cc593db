//! Why a plugin could not do what was asked.

use std::io;
use std::path::PathBuf;

/// Why a plugin could not do what was asked. No variant holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("plugin {0} serves no such method and path; next: see its page in the documentation")]
    Route(&'static str),
    #[error("plugin {plugin}: no {what} of this name")]
    Missing { plugin: &'static str, what: &'static str },
    #[error("plugin {plugin}: {member} {reason}")]
    Member { plugin: &'static str, member: &'static str, reason: String },
    #[error("plugin {plugin}: the body has more than {limit} bytes")]
    TooLarge { plugin: &'static str, limit: usize },
    #[error("plugin {plugin}: this guest's initdata does not bind it to this path; next: set {claim} in its initdata")]
    NotBound { plugin: &'static str, claim: &'static str },
    #[error("plugin {0} is busy; next: try again later")]
    Busy(&'static str),
    #[error("plugin {plugin}: {program} refused: {text}")]
    Declined { plugin: &'static str, program: &'static str, text: String },
    #[error("plugin {plugin}: {} can't be run: {reason}; next: check that it is installed", program.display())]
    Program { plugin: &'static str, program: PathBuf, reason: String },
    #[error("plugin {plugin}: {}: {source}; next: check the path and its permissions", path.display())]
    File { plugin: &'static str, path: PathBuf, source: io::Error },
    #[error("plugin {plugin}: configuration: {reason}")]
    Config { plugin: &'static str, reason: String },
    #[error("plugin external: backend \"{backend}\" does not answer: {reason}; next: check that it runs")]
    Unreachable { backend: String, reason: String },
    #[error("plugin external: backend \"{backend}\" answered {status}: {text}")]
    Answered { backend: String, status: u16, text: String },
    #[error("plugin external: backend \"{backend}\" broke the protocol: {reason}")]
    Protocol { backend: String, reason: String },
    #[error("plugin {0}: the system gives no randomness")]
    Randomness(&'static str),
    #[error("plugin pkcs11: {0}")]
    Hsm(#[from] hsm::Error),
    #[error("plugin provisioner: {0}")]
    Store(#[from] store::Error),
}

/// What a caller over HTTP is to be told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// There is nothing here.
    NotFound,
    /// The request can't be served in this form.
    BadRequest,
    /// This caller may not.
    Forbidden,
    /// It contradicts what is there.
    Conflict,
    /// Later it may work.
    Unavailable,
    /// Someone has to repair something.
    Internal,
}

impl Error {
    /// The kind of this error.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Route(_) | Self::Missing { .. } => Kind::NotFound,
            Self::Member { .. } | Self::TooLarge { .. } | Self::Declined { .. } => Kind::BadRequest,
            Self::NotBound { .. } => Kind::Forbidden,
            Self::Busy(_) | Self::Unreachable { .. } => Kind::Unavailable,
            Self::Hsm(e) if e.is_temporary() => Kind::Unavailable,
            Self::Hsm(hsm::Error::NotWrapped(_) | hsm::Error::TooLarge { .. } | hsm::Error::TooLong(_)) => {
                Kind::BadRequest
            }
            Self::Store(store::Error::Unavailable(_)) => Kind::Unavailable,
            Self::Answered { status, .. } => match status {
                404 | 410 => Kind::NotFound,
                401 | 403 => Kind::Forbidden,
                409 | 412 => Kind::Conflict,
                400..=499 => Kind::BadRequest,
                502..=504 => Kind::Unavailable,
                _ => Kind::Internal,
            },
            Self::Program { .. }
            | Self::File { .. }
            | Self::Config { .. }
            | Self::Protocol { .. }
            | Self::Randomness(_)
            | Self::Hsm(_)
            | Self::Store(_) => Kind::Internal,
        }
    }

    /// The HTTP status. A backend of the plugin external chooses its own.
    pub fn status(&self) -> u16 {
        match (self, self.kind()) {
            // Guests take 401 for a token that has run out, and would attest again for nothing.
            (Self::Answered { status: 401, .. }, _) => 403,
            (Self::Answered { status, .. }, _) => *status,
            (Self::TooLarge { .. } | Self::Hsm(hsm::Error::TooLarge { .. }), _) => 413,
            (_, Kind::NotFound) => 404,
            (_, Kind::BadRequest) => 400,
            (_, Kind::Forbidden) => 403,
            (_, Kind::Conflict) => 409,
            (_, Kind::Unavailable) => 503,
            (_, Kind::Internal) => 500,
        }
    }
}

/// The start of a text that came from elsewhere, escaped.
pub(crate) fn excerpt(text: &str) -> String {
    text.trim().chars().take(EXCERPT).flat_map(char::escape_default).collect()
}

const EXCERPT: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_status_and_a_backend_its_own() {
        let answered = |status| Error::Answered { backend: "b".to_owned(), status, text: String::new() };
        for (error, kind, status) in [
            (Error::Route("sample"), Kind::NotFound, 404),
            (Error::TooLarge { plugin: "external", limit: 1 }, Kind::BadRequest, 413),
            (Error::NotBound { plugin: "provisioner", claim: "c" }, Kind::Forbidden, 403),
            (Error::Busy("nebula-ca"), Kind::Unavailable, 503),
            (Error::Hsm(hsm::Error::NotWrapped("k".to_owned())), Kind::BadRequest, 400),
            (Error::Hsm(hsm::Error::Busy), Kind::Unavailable, 503),
            (Error::Hsm(hsm::Error::NoKey { class: "public", label: "k".to_owned() }), Kind::Internal, 500),
            (Error::Store(store::Error::NoKey), Kind::Internal, 500),
            (answered(404), Kind::NotFound, 404),
            (answered(401), Kind::Forbidden, 403),
            (answered(409), Kind::Conflict, 409),
            (answered(418), Kind::BadRequest, 418),
            (answered(503), Kind::Unavailable, 503),
            (answered(500), Kind::Internal, 500),
        ] {
            assert_eq!((error.kind(), error.status()), (kind, status), "{error}");
        }
    }
}
