//! Where keys are kept: a file, or an address that answers over HTTPS.

use std::fmt;
use std::path::PathBuf;

use reqwest::Url;

use crate::error::Error;

/// Where keys are kept.
pub(crate) enum Place {
    File(PathBuf),
    Https(Url),
}

impl Place {
    /// Reads `file:///...` or `https://...`. Keys that came over plain HTTP could be anyone's.
    ///
    /// # Errors
    /// [`Error::Place`] for everything else, and for addresses with a user name or password in them.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let refused = || Error::Place(text.chars().filter(|c| !c.is_control()).take(200).collect());
        let url = Url::parse(text).map_err(|_| refused())?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Error::Place("an address with a password".to_owned()));
        }
        match url.scheme() {
            "file" => url.to_file_path().map(Self::File).map_err(|()| refused()),
            "https" => Ok(Self::Https(url)),
            _ => Err(refused()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Https(url) => write!(f, "{url}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_and_https_are_places_of_keys() {
        for (text, expected) in [
            ("file:///etc/keys.json", "/etc/keys.json"),
            ("file:///etc/my%20keys.json", "/etc/my keys.json"),
            ("https://issuer.example/realm", "https://issuer.example/realm"),
        ] {
            assert_eq!(Place::parse(text).unwrap().to_string(), expected);
        }
        for bad in [
            "",
            "/etc/keys.json",
            "issuer.example",
            "http://issuer.example",
            "http://127.0.0.1/",
            "file://host/keys.json",
            "ftp://x/y",
            "data:,x",
            "https://u@x/",
            "https://u:secret@x/",
        ] {
            let error = Place::parse(bad).err().map(|e| e.to_string()).unwrap();
            assert!(error.contains("is no place of keys") && !error.contains("secret"), "{error}");
        }
    }
}
