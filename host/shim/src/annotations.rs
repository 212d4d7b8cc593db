//! What a pod's annotations change in its configuration, and the owner's initdata that they carry.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;
use wire::initdata::InitData;

use crate::config::NetworkModel;
use crate::{Config, Error};

impl Config {
    /// Follows the annotations that it allows, and says which it doesn't follow.
    ///
    /// # Errors
    /// [`Error::Annotation`] for one that is allowed and has no usable value: a pod must not run as if it were absent.
    pub(crate) fn follow(&mut self, annotations: &BTreeMap<String, String>) -> Result<Followed, Error> {
        let mut followed = Followed::default();
        for (name, value) in annotations {
            let Some(short) = name.strip_prefix(PREFIX) else { continue };
            let reason = match short.strip_prefix("hypervisor.") {
                Some(key) => self.follow_hypervisor(key, name, value, &mut followed.initdata)?,
                None => self.follow_other(short, name, value)?,
            };
            if let Some(reason) = reason {
                followed.refused.push(Error::NotFollowed { name: name.clone(), reason });
            }
        }
        Ok(followed)
    }

    /// One that the node's configuration has to allow, by its name behind `hypervisor.`; or why it is not followed.
    fn follow_hypervisor(
        &mut self,
        key: &str,
        name: &str,
        value: &str,
        initdata: &mut Option<InitData>,
    ) -> Result<Option<&'static str>, Error> {
        if !self.allows(key) {
            return Ok(Some(NOT_ALLOWED));
        }
        match key {
            "cc_init_data" => *initdata = Some(decode(name, value)?),
            "default_vcpus" => *self.hypervisor.default_vcpus() = number(name, value, 1, MAX_VCPUS)?,
            "default_memory" => *self.hypervisor.default_memory() = number(name, value, MIN_MEMORY, MAX_MEMORY)?,
            "kernel_params" if self.hypervisor.remote.is_none() => {
                let params = &mut self.hypervisor.qemu.kernel_params;
                *params = format!("{params} {value}").trim().to_owned();
            }
            _ => {
                let there = match &mut self.hypervisor.remote {
                    Some(remote) => remote.follow(key, name, value)?,
                    None => false,
                };
                return Ok((!there).then_some(NOTHING));
            }
        }
        Ok(None)
    }

    /// One that needs nobody's leave, since it changes nothing that is the node's; or why it is not followed.
    fn follow_other(&mut self, short: &str, name: &str, value: &str) -> Result<Option<&'static str>, Error> {
        match short {
            "runtime.create_container_timeout" => {
                self.agent.kata.create_container_timeout = number(name, value, 1, MAX_TIMEOUT)?;
            }
            "runtime.internetworking_model" => {
                let model = NetworkModel::deserialize(value.into_deserializer());
                self.runtime.internetworking_model =
                    model.map_err(|error: serde::de::value::Error| invalid(name, error.to_string()))?;
            }
            // The pod's limits hold for its machine, unless the node says otherwise.
            "runtime.sandbox_cgroup_only" if value != self.runtime.sandbox_cgroup_only.to_string() => {
                return Ok(Some(NODE_S));
            }
            "runtime.sandbox_cgroup_only" => {}
            _ if SO_ANYWAY.contains(&(short, value)) => {}
            _ => return Ok(Some(NOTHING)),
        }
        Ok(None)
    }
}

/// What came of a pod's annotations.
#[derive(Debug, Default)]
pub(crate) struct Followed {
    /// The owner's initdata, if there is any.
    pub(crate) initdata: Option<InitData>,
    /// Those that are not followed, each as [`Error::NotFollowed`].
    pub(crate) refused: Vec<Error>,
}

/// The annotation with the owner's initdata. The guest gets it on a disk, bound to the hardware, and not in a request.
pub const INITDATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";

pub(crate) fn number<T: FromStr + PartialOrd + std::fmt::Display>(
    name: &str,
    value: &str,
    min: T,
    max: T,
) -> Result<T, Error> {
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

const NOT_ALLOWED: &str =
    "enable_annotations in the node's configuration doesn't name it; next: leave it out, or ask who runs the node";
const NODE_S: &str = "that is for the node's configuration to say; next: leave it out";
const NOTHING: &str = "this runtime has nothing that it would change; next: leave it out, see docs/shim.md";
/// What Kata's annotations can ask for and is so for every pod.
const SO_ANYWAY: [(&str, &str); 4] = [
    ("agent.enable_tracing", "false"),
    ("runtime.disable_new_netns", "true"),
    ("runtime.disable_guest_seccomp", "true"),
    ("runtime.experimental", "force_guest_pull"),
];
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

    fn follow(config: &mut Config, name: &str, value: &str) -> Result<Followed, Error> {
        config.follow(&[(format!("{PREFIX}{name}"), value.to_owned())].into())
    }

    #[test]
    fn what_is_allowed_is_followed_and_what_is_not_is_told() {
        let mut config = Config::default();
        for (name, value) in [
            ("hypervisor.default_memory", "640"),
            ("runtime.create_container_timeout", "90"),
            ("runtime.internetworking_model", "macvtap"),
            ("runtime.sandbox_cgroup_only", "true"),
            ("runtime.disable_guest_seccomp", "true"),
            ("runtime.experimental", "force_guest_pull"),
        ] {
            assert!(follow(&mut config, name, value).unwrap().refused.is_empty(), "{name}");
        }
        let machine = &config.hypervisor.qemu;
        assert_eq!((machine.default_memory, machine.kernel_params.as_str()), (640, ""));
        assert_eq!(config.agent.kata.create_container_timeout, 90);
        assert_eq!(config.runtime.internetworking_model, NetworkModel::Macvtap);

        for (name, value, reason) in [
            ("hypervisor.kernel_params", "debug", NOT_ALLOWED),
            ("hypervisor.path", "/bin/sh", NOT_ALLOWED),
            ("agent.kernel_modules", "e1000e", NOTHING),
            ("runtime.disable_guest_seccomp", "false", NOTHING),
            ("runtime.sandbox_cgroup_only", "false", NODE_S),
            ("runtime.sandbox_bind_mounts", "/etc", NOTHING),
        ] {
            let before = config.clone();
            let refused = follow(&mut config, name, value).unwrap().refused;
            assert!(refused[0].to_string().contains(&format!("{name} is not followed: {reason}")), "{refused:?}");
            assert_eq!((refused.len(), &config), (1, &before), "{name}");
        }
        let other = [("io.kubernetes.cri.sandbox-id".to_owned(), "s".to_owned())].into();
        assert!(config.follow(&other).unwrap().refused.is_empty());

        // All that there are, and not more.
        config.hypervisor.qemu.enable_annotations = vec![".*".to_owned()];
        follow(&mut config, "hypervisor.kernel_params", "debug").unwrap();
        assert_eq!(config.hypervisor.qemu.kernel_params, "debug");
        let refused = follow(&mut config, "hypervisor.path", "/bin/sh").unwrap().refused;
        assert!(refused[0].to_string().contains(NOTHING), "{refused:?}");
    }

    #[test]
    fn initdata_comes_as_base64_of_gzip() {
        let initdata = follow(&mut Config::default(), "hypervisor.cc_init_data", &gzip(DOCUMENT.as_bytes()));
        assert_eq!(initdata.unwrap().initdata.unwrap().text(), DOCUMENT);
    }

    #[test]
    fn a_value_that_can_t_be_used_fails_the_pod() {
        let bomb = gzip(&vec![b' '; 8 << 20]);
        for (name, value, reason) in [
            ("hypervisor.default_vcpus", "0", "1 to 255"),
            ("hypervisor.default_memory", "lots", "not a number"),
            ("runtime.internetworking_model", "bridge", "`tcfilter`, `macvtap`, `none`"),
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
