//! Why a place of resources did not do what was asked.

use std::path::PathBuf;

use reqwest::StatusCode;
use wire::resource::ResourcePath;

/// Why a call failed. No variant holds any part of a secret, a credential or a service's free text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration can't be right.
    #[error("resource backend: {key} can't be used: {cause}; next: correct it in the plugin's configuration")]
    Config {
        /// The key as it is written.
        key: &'static str,
        /// What is wrong with its value.
        cause: String,
    },
    /// A file that the configuration names can't be read.
    #[error("resource backend: {} can't be read: {source}; next: check the path and its permissions", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There are no credentials, or they can't be exchanged for a token.
    #[error("{service}: no credentials: {cause}; next: check the login that the configuration names")]
    Credentials {
        /// Which service.
        service: String,
        /// What is missing or failed.
        cause: String,
    },
    /// The service refused this broker's credentials.
    #[error("{service} refused this broker ({status} {code}); next: check what its role and policies there allow")]
    Denied {
        /// Which service.
        service: String,
        /// The status of the answer.
        status: u16,
        /// The service's own code for it.
        code: String,
    },
    /// The service can't be reached, is overloaded or broken.
    #[error("{service} is not available: {cause}; next: look at the service and the way to it, then try again")]
    Unavailable {
        /// Which service.
        service: String,
        /// What happened.
        cause: String,
    },
    /// The condition of a write does not hold.
    #[error("{path} was changed by someone else; next: read it again")]
    Conflict {
        /// Which resource.
        path: ResourcePath,
    },
    /// The place can't check such a condition in one step with the write.
    #[error("{service} can't {operation} under this condition; next: send the request without it")]
    ConditionUnsupported {
        /// Which service.
        service: String,
        /// `write` or `delete`.
        operation: &'static str,
    },
    /// The place can't do this at all.
    #[error("{service} can't {operation}; next: {advice}")]
    Unsupported {
        /// Which service.
        service: String,
        /// What was asked.
        operation: &'static str,
        /// What would make it possible.
        advice: &'static str,
    },
    /// The resource's path has no name there.
    #[error("{path} has no name in {service}, which allows {max} characters; next: use a shorter path")]
    Name {
        /// Which resource.
        path: ResourcePath,
        /// Which service.
        service: String,
        /// The longest name.
        max: usize,
    },
    /// The value does not fit.
    #[error("the value has {size} bytes, {service} holds at most {max}; next: use a smaller value or the own store")]
    TooLarge {
        /// Which service.
        service: String,
        /// The value's size.
        size: usize,
        /// The largest size.
        max: usize,
    },
    /// The service refused the request itself.
    #[error("{service} refused the request ({status} {code}); next: look at its log for this time")]
    Refused {
        /// Which service.
        service: String,
        /// The status of the answer.
        status: u16,
        /// The service's own code for it.
        code: String,
    },
    /// The answer is not what the service's interface promises.
    #[error("{service} answered what can't be used: {cause}; next: check that the address is that of the service")]
    Malformed {
        /// Which service.
        service: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A list would be longer than anyone can hold.
    #[error("{service} holds more than {max} resources; next: list one repository")]
    TooMany {
        /// Which service.
        service: String,
        /// The longest list.
        max: usize,
    },
    /// The own store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// What a caller over HTTP is to be told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The request can't be served in this form.
    BadRequest,
    /// The condition does not hold.
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
            Self::Conflict { .. } | Self::Store(store::Error::Conflict { .. }) => Kind::Conflict,
            Self::Store(store::Error::Key(_) | store::Error::TooLarge { .. })
            | Self::ConditionUnsupported { .. }
            | Self::Unsupported { .. }
            | Self::Name { .. }
            | Self::TooLarge { .. }
            | Self::TooMany { .. } => Kind::BadRequest,
            Self::Store(store::Error::Unavailable(_)) | Self::Credentials { .. } | Self::Unavailable { .. } => {
                Kind::Unavailable
            }
            Self::Config { .. }
            | Self::File { .. }
            | Self::Denied { .. }
            | Self::Refused { .. }
            | Self::Malformed { .. }
            | Self::Store(_) => Kind::Internal,
        }
    }

    /// What a status that no caller expected means. `code` comes from the service and is cut to a plain word.
    pub(crate) fn refusal(service: &str, status: StatusCode, code: &str) -> Self {
        let service = service.to_owned();
        let code: String =
            code.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')).take(MAX_CODE).collect();
        match status.as_u16() {
            401 | 403 => Self::Denied { service, status: status.as_u16(), code },
            408 | 429 | 500.. => Self::Unavailable { service, cause: format!("{} {code}", status.as_u16()) },
            300..=399 => Self::Malformed { service, cause: "it points to another address".to_owned() },
            status => Self::Refused { service, status, code },
        }
    }
}

const MAX_CODE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_becomes_the_error_that_says_whose_turn_it_is() {
        for (status, kind) in [
            (301, Kind::Internal),
            (400, Kind::Internal),
            (401, Kind::Internal),
            (403, Kind::Internal),
            (429, Kind::Unavailable),
            (503, Kind::Unavailable),
        ] {
            let error = Error::refusal("Vault", StatusCode::from_u16(status).unwrap(), "");
            assert_eq!(error.kind(), kind, "{error}");
        }
    }

    #[test]
    fn a_services_code_is_cut_to_a_plain_word() {
        let error = Error::refusal("AWS", StatusCode::BAD_REQUEST, &format!("Bad \"{}\"\n", "x".repeat(100)));
        assert!(error.to_string().contains(&format!("(400 Bad{})", "x".repeat(61))), "{error}");
    }
}
