//! Which versions, cipher suites and key exchanges TLS may use: named profiles, and lists in OpenSSL's spelling.

use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{CipherSuite, NamedGroup, SupportedCipherSuite, SupportedProtocolVersion, version};

/// A profile, and what is chosen differently from it.
#[derive(Clone, Debug, Default)]
pub struct TlsProfile {
    /// What holds where nothing else is said.
    pub base: Base,
    /// `1.2` or `1.3`; 1.0 and 1.1 don't exist here.
    pub min_version: Option<String>,
    /// `1.2` or `1.3`.
    pub max_version: Option<String>,
    /// Cipher suites, most wanted first, separated by colons. Names as OpenSSL or as IANA has them.
    pub ciphers: Option<String>,
    /// Key exchange groups, most wanted first, separated by colons.
    pub groups: Option<String>,
}

/// The named profiles.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Base {
    /// What `Intermediate` is: nothing older than TLS 1.2 is spoken, and no cipher suite without forward secrecy.
    Old,
    /// TLS 1.2 and 1.3.
    #[default]
    Intermediate,
    /// TLS 1.3 alone.
    Modern,
    /// `Intermediate` as the base of one's own choices.
    Custom,
}

impl TlsProfile {
    /// The algorithms and versions that the profile means.
    ///
    /// What a list names and this server doesn't offer is left out, with a warning; that can only narrow the choice.
    pub(crate) fn resolve(&self) -> Result<(CryptoProvider, Vec<&'static SupportedProtocolVersion>), Error> {
        let lowest = if self.base == Base::Modern { Version::Tls13 } else { Version::Tls12 };
        let min = self.min_version.as_deref().map_or(Ok(lowest), |text| Version::parse("tls_min_version", text))?;
        let max =
            self.max_version.as_deref().map_or(Ok(Version::Tls13), |text| Version::parse("tls_max_version", text))?;
        let mut versions = Vec::new();
        if max == Version::Tls13 {
            versions.push(&version::TLS13);
        }
        if min == Version::Tls12 {
            versions.push(&version::TLS12);
        }
        if versions.is_empty() {
            return Err(Error::Versions);
        }
        let mut provider = aws_lc_rs::default_provider();
        if let Some(list) = &self.ciphers {
            provider.cipher_suites = choose("tls_ciphers", list, suite)?;
        }
        let usable = |suite: &SupportedCipherSuite| versions.iter().any(|v| v.version == suite.version().version);
        if !provider.cipher_suites.iter().any(usable) {
            return Err(Error::NoSuite);
        }
        provider.kx_groups = match &self.groups {
            Some(list) => choose("tls_groups", list, group)?,
            None => vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        };
        Ok((provider, versions))
    }

    /// Whether something is chosen that the named profile is overruled by, though it is not `Custom`.
    pub(crate) fn overrules(&self) -> bool {
        let chosen = [&self.min_version, &self.max_version, &self.ciphers, &self.groups];
        self.base != Base::Custom && chosen.iter().any(|choice| choice.is_some())
    }
}

/// Why a profile can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{key} is {value:?}, which is not spoken here; next: write \"1.2\" or \"1.3\"")]
    Version { key: &'static str, value: String },
    #[error("no version of TLS is left; next: give a tls_min_version that is not above tls_max_version")]
    Versions,
    #[error("tls_ciphers names no cipher suite of the chosen versions; next: name one of {SUITES}")]
    NoSuite,
    #[error("{key} names nothing that is offered here; next: name at least one of {known}")]
    Nothing { key: &'static str, known: &'static str },
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Version {
    Tls12,
    Tls13,
}

impl Version {
    fn parse(key: &'static str, text: &str) -> Result<Self, Error> {
        match text {
            "1.2" => Ok(Self::Tls12),
            "1.3" => Ok(Self::Tls13),
            _ => Err(Error::Version { key, value: text.chars().take(32).collect() }),
        }
    }
}

fn choose<T>(key: &'static str, list: &str, find: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, Error> {
    let mut chosen = Vec::new();
    for name in list.split(':').map(str::trim).filter(|name| !name.is_empty()) {
        match find(name) {
            Some(found) => chosen.push(found),
            None => tracing::warn!(key, name, "not offered here, and left out"),
        }
    }
    if chosen.is_empty() {
        return Err(Error::Nothing { key, known: if key == "tls_groups" { GROUPS } else { SUITES } });
    }
    Ok(chosen)
}

fn suite(name: &str) -> Option<SupportedCipherSuite> {
    let wanted = match name.to_ascii_uppercase().as_str() {
        "TLS_AES_128_GCM_SHA256" => CipherSuite::TLS13_AES_128_GCM_SHA256,
        "TLS_AES_256_GCM_SHA384" => CipherSuite::TLS13_AES_256_GCM_SHA384,
        "TLS_CHACHA20_POLY1305_SHA256" => CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        "ECDHE-ECDSA-AES128-GCM-SHA256" | "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256" => {
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        }
        "ECDHE-ECDSA-AES256-GCM-SHA384" | "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384" => {
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        }
        "ECDHE-ECDSA-CHACHA20-POLY1305" | "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256" => {
            CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        }
        "ECDHE-RSA-AES128-GCM-SHA256" | "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256" => {
            CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        }
        "ECDHE-RSA-AES256-GCM-SHA384" | "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384" => {
            CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
        }
        "ECDHE-RSA-CHACHA20-POLY1305" | "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256" => {
            CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
        }
        _ => return None,
    };
    aws_lc_rs::ALL_CIPHER_SUITES.iter().copied().find(|suite| suite.suite() == wanted)
}

fn group(name: &str) -> Option<&'static dyn SupportedKxGroup> {
    let wanted = match name.to_ascii_lowercase().as_str() {
        "x25519mlkem768" => NamedGroup::X25519MLKEM768,
        "secp256r1mlkem768" => NamedGroup::secp256r1MLKEM768,
        "x25519" => NamedGroup::X25519,
        "secp256r1" | "p-256" | "prime256v1" => NamedGroup::secp256r1,
        "secp384r1" | "p-384" => NamedGroup::secp384r1,
        _ => return None,
    };
    aws_lc_rs::ALL_KX_GROUPS.iter().copied().find(|group| group.name() == wanted)
}

const SUITES: &str = "TLS_AES_256_GCM_SHA384, TLS_AES_128_GCM_SHA256, TLS_CHACHA20_POLY1305_SHA256, \
    ECDHE-{ECDSA,RSA}-AES256-GCM-SHA384, ECDHE-{ECDSA,RSA}-AES128-GCM-SHA256, ECDHE-{ECDSA,RSA}-CHACHA20-POLY1305";
const GROUPS: &str = "X25519MLKEM768, SecP256r1MLKEM768, X25519, secp256r1, secp384r1";

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(base: Base, min: &str, max: &str, ciphers: &str, groups: &str) -> TlsProfile {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        TlsProfile {
            base,
            min_version: given(min),
            max_version: given(max),
            ciphers: given(ciphers),
            groups: given(groups),
        }
    }

    #[test]
    fn profiles_mean_versions() {
        for (base, min, max, expected) in [
            (Base::Old, "", "", "1.3 1.2"),
            (Base::Intermediate, "", "", "1.3 1.2"),
            (Base::Modern, "", "", "1.3"),
            (Base::Custom, "1.2", "1.2", "1.2"),
            (Base::Modern, "1.2", "", "1.3 1.2"),
            (Base::Intermediate, "1.3", "", "1.3"),
        ] {
            let (_, versions) = profile(base, min, max, "", "").resolve().unwrap();
            let names: Vec<_> = versions.iter().map(|v| format!("{:?}", v.version).replace("TLSv1_", "1.")).collect();
            assert_eq!(names.join(" "), expected, "{base:?} {min} {max}");
        }
    }

    #[test]
    fn lists_keep_their_order_and_leave_out_what_is_unknown() {
        let ciphers = "DHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384:TLS_AES_128_GCM_SHA256";
        let groups = "X448:secp256r1:X25519MLKEM768";
        let (provider, _) = profile(Base::Custom, "", "", ciphers, groups).resolve().unwrap();
        let suites: Vec<_> = provider.cipher_suites.iter().map(|s| s.suite()).collect();
        assert_eq!(suites, [CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, CipherSuite::TLS13_AES_128_GCM_SHA256]);
        let groups: Vec<_> = provider.kx_groups.iter().map(|g| g.name()).collect();
        assert_eq!(groups, [NamedGroup::secp256r1, NamedGroup::X25519MLKEM768]);
    }

    #[test]
    fn a_post_quantum_group_is_the_first_choice() {
        let (provider, _) = TlsProfile::default().resolve().unwrap();
        assert_eq!(provider.kx_groups[0].name(), NamedGroup::X25519MLKEM768);
    }

    #[test]
    fn what_can_t_be_is_named() {
        for (profile, expected) in [
            (profile(Base::Old, "1.0", "", "", ""), "tls_min_version is \"1.0\""),
            (profile(Base::Custom, "", "1.4", "", ""), "tls_max_version is \"1.4\""),
            (profile(Base::Modern, "", "1.2", "", ""), "no version"),
            (profile(Base::Modern, "", "", "ECDHE-RSA-AES256-GCM-SHA384", ""), "of the chosen versions"),
            (profile(Base::Custom, "", "", "RC4-MD5", ""), "tls_ciphers names nothing"),
            (profile(Base::Custom, "", "", "", "brainpoolP256r1"), "tls_groups names nothing"),
        ] {
            let error = profile.resolve().map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("; next: "), "{error}");
        }
    }
}
