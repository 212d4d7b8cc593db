//! Which images this machine runs, and which of several it runs best.

use std::fmt;

use oci_spec::image::{Descriptor, Os};

/// A machine, by what it can run.
///
/// The order is that of containerd's platform matcher, without looking at what the processor claims to be able to do:
/// that is the host's choice, and the image must not be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Platform {
    /// Architectures by their names in Go, with their variants in the normal form; the best one first.
    choices: &'static [(&'static str, &'static str)],
}

impl Platform {
    /// The machine that this program was built for.
    pub(crate) fn this() -> Self {
        Self::of(std::env::consts::ARCH)
    }

    fn of(machine: &str) -> Self {
        let choices: &[_] = match machine {
            "x86_64" => &[("amd64", ""), ("386", "")],
            "aarch64" => &[("arm64", ""), ("arm", "v8"), ("arm", "v7"), ("arm", "v6"), ("arm", "v5")],
            "arm" => &[("arm", "v7"), ("arm", "v6"), ("arm", "v5")],
            "powerpc64" if cfg!(target_endian = "little") => &[("ppc64le", "")],
            "s390x" => &[("s390x", "")],
            "riscv64" => &[("riscv64", "")],
            "loongarch64" => &[("loong64", "")],
            _ => &[],
        };
        Self { choices }
    }

    /// Whether a configuration's platform can run here.
    pub(crate) fn runs(self, os: &Os, architecture: &str) -> bool {
        *os == Os::Linux && self.choices.iter().any(|(known, _)| *known == normal(architecture))
    }

    /// The best entry of an index: of equally good ones the first, and one without a platform if it is the only one.
    ///
    /// # Errors
    /// What the index has instead.
    pub(crate) fn choose(self, manifests: &[Descriptor]) -> Result<&Descriptor, String> {
        let place = |entry: &Descriptor| {
            let platform = entry.platform().as_ref().filter(|platform| *platform.os() == Os::Linux)?;
            let architecture = platform.architecture().to_string();
            let (architecture, variant) =
                (normal(&architecture), platform.variant().as_deref().unwrap_or_default().to_ascii_lowercase());
            let variant = normal_variant(architecture, &variant);
            self.choices.iter().position(|choice| *choice == (architecture, variant))
        };
        let ranked = manifests.iter().filter_map(|entry| Some((place(entry)?, entry)));
        match (ranked.min_by_key(|(place, _)| *place), manifests) {
            (Some((_, best)), _) => Ok(best),
            (None, [only]) if only.platform().is_none() => Ok(only),
            _ => Err(format!("the index has no manifest for {self}, only for {}", listed(manifests))),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.choices.first().map_or(std::env::consts::ARCH, |(architecture, _)| architecture))
    }
}

/// Other names of the same architecture.
fn normal(architecture: &str) -> &str {
    match architecture {
        "x86_64" | "x86-64" => "amd64",
        "i386" | "i486" | "i586" | "i686" => "386",
        "aarch64" => "arm64",
        "armhf" | "armel" => "arm",
        other => other,
    }
}

/// The variant that is meant where none is written, and nothing where the usual one is.
fn normal_variant<'a>(architecture: &str, variant: &'a str) -> &'a str {
    match (architecture, variant) {
        ("amd64", "v1") | ("arm64", "8" | "v8" | "8.0" | "v8.0") => "",
        ("arm", "" | "7") => "v7",
        ("arm", "5") => "v5",
        ("arm", "6") => "v6",
        ("arm", "8") => "v8",
        (_, variant) => variant,
    }
}

fn listed(manifests: &[Descriptor]) -> String {
    let shown = |entry: &Descriptor| match entry.platform() {
        Some(platform) => {
            let variant = platform.variant().as_deref().map_or(String::new(), |variant| format!("/{variant}"));
            format!("{}/{}{variant}", platform.os(), platform.architecture())
        }
        None => "no platform".to_owned(),
    };
    let mut names: Vec<_> = manifests.iter().take(MAX_LISTED).map(shown).collect();
    names.dedup();
    match names.is_empty() {
        true => "nothing".to_owned(),
        false => names.join(", ").escape_debug().to_string(),
    }
}

const MAX_LISTED: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[&str]) -> Vec<Descriptor> {
        let entry = |(number, platform): (usize, &&str)| {
            let mut parts = platform.split('/');
            let mut entry = serde_json::json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1,
                "digest": format!("sha256:{number:064}"),
            });
            if let (Some(os), Some(architecture)) = (parts.next().filter(|os| !os.is_empty()), parts.next()) {
                entry["platform"] = serde_json::json!({ "os": os, "architecture": architecture });
                if let Some(variant) = parts.next() {
                    entry["platform"]["variant"] = variant.into();
                }
            }
            serde_json::from_value(entry).unwrap()
        };
        platforms.iter().enumerate().map(entry).collect()
    }

    #[test]
    fn the_best_platform_decides_and_not_the_order() {
        for (machine, platforms, expected) in [
            ("x86_64", &["linux/arm64", "linux/amd64"][..], Ok(1)),
            ("x86_64", &["linux/386", "linux/amd64/v3", "linux/amd64/v1"], Ok(2)),
            ("x86_64", &["linux/amd64", "linux/amd64/v1"], Ok(0)),
            ("x86_64", &["linux/amd64/v3", "linux/386"], Ok(1)),
            ("x86_64", &["linux/amd64/v3"], Err("only for linux/amd64/v3")),
            ("x86_64", &["windows/amd64", "linux/x86_64"], Ok(1)),
            ("x86_64", &["windows/amd64", "unknown/unknown"], Err("linux/amd64, only for windows/amd64, unknown")),
            ("x86_64", &[""], Ok(0)),
            ("x86_64", &["", ""], Err("only for no platform")),
            ("x86_64", &[], Err("only for nothing")),
            ("aarch64", &["linux/arm/v6", "linux/arm/v7", "linux/amd64"], Ok(1)),
            ("aarch64", &["linux/arm/v8", "linux/arm64/v8"], Ok(1)),
            ("aarch64", &["linux/arm64", "linux/arm64/v8"], Ok(0)),
            ("aarch64", &["linux/arm"], Ok(0)),
            ("arm", &["linux/arm/v8", "linux/arm/v5", "linux/arm/6"], Ok(2)),
            ("s390x", &["linux/amd64", "linux/s390x"], Ok(1)),
            ("sparc", &["linux/amd64"], Err("no manifest")),
        ] {
            let index = index(platforms);
            let chosen = Platform::of(machine).choose(&index);
            match (chosen, expected) {
                (Ok(entry), Ok(number)) => assert_eq!(*entry, index[number], "{machine} {platforms:?}"),
                (Err(actual), Err(expected)) => assert!(actual.contains(expected), "{platforms:?} gave {actual:?}"),
                (actual, _) => panic!("{machine} {platforms:?} gave {actual:?}"),
            }
        }
    }

    #[test]
    fn a_configuration_must_be_for_this_machine() {
        let machine = Platform::of("aarch64");
        for (os, architecture, expected) in [
            (Os::Linux, "arm64", true),
            (Os::Linux, "arm", true),
            (Os::Linux, "amd64", false),
            (Os::Windows, "arm64", false),
        ] {
            assert_eq!(machine.runs(&os, architecture), expected, "{os} {architecture}");
        }
    }
}
