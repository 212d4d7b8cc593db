//! What a pod's annotations change in its configuration, and the owner's initdata that they carry.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use wire::initdata::InitData;

use crate::{Config, Error};

impl Config {
    /// Follows the annotations that it allows, warns of the others, and gives the initdata.
    ///
    /// # Errors
    /// [`Error::Annotation`] for one that is allowed and has no usable value: a pod must not run as if it were absent.
    pub fn follow(&mut self, annotations: &BTreeMap<String, String>) -> Result<Option<InitData>, Error> {
        let mut initdata = None;
        for (name, value) in annotations {
            let Some(short) = name.strip_prefix(PREFIX) else { continue };
            let allowed = |key: &str| self.hypervisor.qemu.enable_annotations.iter().any(|it| it == key);
            match short {
                "runtime.create_container_timeout" => {
                    self.agent.kata.create_container_timeout = number(name, value, 1, MAX_TIMEOUT)?;
                }
                "hypervisor.cc_init_data" if allowed("cc_init_data") => initdata = Some(decode(name, value)?),
                "hypervisor.default_vcpus" if allowed("default_vcpus") => {
                    self.hypervisor.qemu.default_vcpus = number(name, value, 1, MAX_VCPUS)?;
                }
                "hypervisor.default_memory" if allowed("default_memory") => {
                    self.hypervisor.qemu.default_memory = number(name, value, MIN_MEMORY, MAX_MEMORY)?;
                }
                "hypervisor.kernel_params" if allowed("kernel_params") => {
                    let params = &mut self.hypervisor.qemu.kernel_params;
                    *params = format!("{params} {value}").trim().to_owned();
                }
                _ => {
                    tracing::warn!(annotation = %name, "ignored: enable_annotations doesn't allow it, or nothing does")
                }
            }
        }
        Ok(initdata)
    }
}

/// The annotation with the owner's initdata. The guest gets it on a disk, bound to the hardware, and not in a request.
pub const INITDATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";

fn number<T: FromStr + PartialOrd + std::fmt::Display>(name: &str, value: &str, min: T, max: T) -> Result<T, Error> {
    match value.parse() {
        Ok(number) if number >= min && number <= max => Ok(number),
        _ => Err(invalid(name, format!("is {value:?} and not a number from {min} to {max}"))),
    }
}

/// Initdata in an annotation: base64 of gzip of the document.
fn decode(name: &str, value: &str) -> Result<InitData, Error> {
    let compressed = STANDARD.decode(value.trim()).map_err(|error| invalid(name, format!("is no base64: {error}")))?;
    let mut text = String::new();
    let inflated = GzDecoder::new(&compressed[..]).take(MAX_INITDATA + 1).read_to_string(&mut text);
    inflated.map_err(|error| invalid(name, format!("is no gzip of a text: {error}")))?;
    if text.len() as u64 > MAX_INITDATA {
        return Err(invalid(name, format!("unpacks to more than {MAX_INITDATA} bytes")));
    }
    InitData::parse(text).map_err(|error| invalid(name, format!("is refused: {error}")))
}

fn invalid(name: &str, reason: String) -> Error {
    Error::Annotation { name: name.to_owned(), reason }
}

const PREFIX: &str = "io.katacontainers.config.";
const MAX_TIMEOUT: u64 = 24 * 3600;
const MAX_VCPUS: u32 = 255;
const MIN_MEMORY: u32 = 96;
const MAX_MEMORY: u32 = 1 << 20;
/// The guest takes no more.
const MAX_INITDATA: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write as _;

    const DOCUMENT: &str = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n";

    fn gzip(text: &[u8]) -> String {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(text).unwrap();
        STANDARD.encode(packed.finish().unwrap())
    }

    fn follow(config: &mut Config, name: &str, value: &str) -> Result<Option<InitData>, Error> {
        config.follow(&[(format!("{PREFIX}{name}"), value.to_owned())].into())
    }

    #[test]
    fn what_is_allowed_is_followed_and_what_is_not_is_ignored() {
        let mut config = Config::default();
        follow(&mut config, "hypervisor.default_memory", "640").unwrap();
        follow(&mut config, "runtime.create_container_timeout", "90").unwrap();
        follow(&mut config, "hypervisor.kernel_params", "debug").unwrap();
        follow(&mut config, "hypervisor.path", "/bin/sh").unwrap();
        config.follow(&[("io.kubernetes.cri.sandbox-id".to_owned(), "s".to_owned())].into()).unwrap();

        let machine = &config.hypervisor.qemu;
        assert_eq!((machine.default_memory, machine.kernel_params.as_str()), (640, ""));
        assert_eq!(config.agent.kata.create_container_timeout, 90);

        config.hypervisor.qemu.enable_annotations.push("kernel_params".to_owned());
        follow(&mut config, "hypervisor.kernel_params", "debug").unwrap();
        assert_eq!(config.hypervisor.qemu.kernel_params, "debug");
    }

    #[test]
    fn initdata_comes_as_base64_of_gzip() {
        let initdata = follow(&mut Config::default(), "hypervisor.cc_init_data", &gzip(DOCUMENT.as_bytes()));
        assert_eq!(initdata.unwrap().unwrap().text(), DOCUMENT);
    }

    #[test]
    fn a_value_that_can_t_be_used_fails_the_pod() {
        let bomb = gzip(&vec![b' '; 8 << 20]);
        for (name, value, reason) in [
            ("hypervisor.default_vcpus", "0", "1 to 255"),
            ("hypervisor.default_memory", "lots", "not a number"),
            ("hypervisor.cc_init_data", "?", "base64"),
            ("hypervisor.cc_init_data", "AAAA", "gzip"),
            ("hypervisor.cc_init_data", &gzip(b"version = 1"), "refused"),
            ("hypervisor.cc_init_data", &bomb, "unpacks to more"),
        ] {
            let error = follow(&mut Config::default(), name, value).unwrap_err().to_string();
            assert!(error.contains(reason), "{name} gave {error:?}");
        }
    }
}
