//! What a container is to its pod, and the names of the annotations that say so.

use std::collections::BTreeMap;

use crate::Error;

/// What a container is to its pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The pod itself: its machine, and the guest's own pause process.
    Sandbox,
    /// A container of the pod whose sandbox has this id.
    Container {
        /// The sandbox's id.
        sandbox: String,
    },
    /// A container that is alone in its machine.
    Single,
}

impl Kind {
    /// What a specification's annotations say.
    ///
    /// # Errors
    /// [`Error::Annotation`] for a pod's container that names no pod.
    pub fn of(annotations: &BTreeMap<String, String>) -> Result<Self, Error> {
        let first = |names: &[&'static str]| names.iter().find_map(|name| annotations.get(*name));
        for name in TYPES {
            match annotations.get(name).map(String::as_str) {
                Some("sandbox" | "podsandbox" | "pod_sandbox") => return Ok(Self::Sandbox),
                Some("container" | "pod_container") => {
                    let missing = || Error::Annotation {
                        name: SANDBOX_IDS[1].to_owned(),
                        reason: "is missing on a pod's container".to_owned(),
                    };
                    return Ok(Self::Container { sandbox: first(&SANDBOX_IDS).ok_or_else(missing)?.clone() });
                }
                _ => {}
            }
        }
        Ok(Self::Single)
    }

    /// The id of the pod that a container with this id belongs to.
    pub fn sandbox<'a>(&'a self, id: &'a str) -> &'a str {
        match self {
            Self::Container { sandbox } => sandbox,
            Self::Sandbox | Self::Single => id,
        }
    }

    /// Whether the machine's life is this container's.
    pub fn owns_machine(&self) -> bool {
        !matches!(self, Self::Container { .. })
    }

    /// The guest agent's word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Sandbox => "pod_sandbox",
            Self::Container { .. } => "pod_container",
            Self::Single => "single_container",
        }
    }
}

const TYPES: [&str; 3] =
    ["io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri.container-type", "io.kubernetes.docker.type"];
const SANDBOX_IDS: [&str; 3] =
    ["io.kubernetes.cri-o.SandboxID", "io.kubernetes.cri.sandbox-id", "io.kubernetes.sandbox.id"];

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(annotations: &[(&str, &str)]) -> Result<Kind, Error> {
        Kind::of(&annotations.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect())
    }

    #[test]
    fn the_first_annotation_that_says_something_counts() {
        let pod = Kind::Container { sandbox: "s".into() };
        for (annotations, expected) in [
            (&[][..], Kind::Single),
            (&[("io.kubernetes.cri.container-type", "sandbox")], Kind::Sandbox),
            (&[("io.kubernetes.docker.type", "podsandbox")], Kind::Sandbox),
            (&[("io.kubernetes.cri.container-type", "container"), ("io.kubernetes.cri.sandbox-id", "s")], pod.clone()),
            (&[("io.kubernetes.cri-o.ContainerType", "what"), ("io.kubernetes.docker.type", "sandbox")], Kind::Sandbox),
        ] {
            assert_eq!(kind(annotations).unwrap(), expected, "{annotations:?}");
        }
        assert!(kind(&[("io.kubernetes.cri.container-type", "container")]).is_err());
        assert_eq!((pod.sandbox("c"), Kind::Single.sandbox("c")), ("s", "c"));
    }
}
