//! What a shim gets instead of a root file system: the order to have the image pulled inside the guest.
//!
//! Source: the KataVirtualVolume of Kata Containers, in a mount option.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::proto::containerd::types::Mount;

/// The one mount of a container.
///
/// containerd mounts a container's root itself for a moment, to look for users and for what the image has in its
/// volumes. So the type is one that the kernel mounts without a helper: a bind mount of a folder with next to nothing, whose other
/// options the kernel doesn't look at. Shims know the order by its option, whatever the type.
///
/// `labels` are those of the image's topmost layer as far as they are known. They are a hint: a layer can belong to several
/// images. Which image a container has is in its annotations.
pub(crate) fn guest_pull(empty: &Path, labels: &HashMap<String, String>) -> Mount {
    let shown = |label: &&str| Some(((*label).to_owned(), labels.get(*label)?.clone()));
    let metadata = [IMAGE_REF, MANIFEST_DIGEST].iter().filter_map(shown);
    let volume = |metadata: BTreeMap<String, String>| {
        let source = metadata.get(IMAGE_REF).map_or(UNKNOWN_IMAGE, String::as_str).to_owned();
        let volume = Volume {
            volume_type: "image_guest_pull",
            source,
            fs_type: "overlay",
            options: ["ro"],
            image_pull: ImagePull { metadata },
        };
        format!("{OPTION}{}", STANDARD.encode(serde_json::to_string(&volume).unwrap_or_default()))
    };
    let mut option = volume(metadata.collect());
    if option.len() > MAX_OPTION {
        option = volume(BTreeMap::new());
    }
    bind(empty, ["bind", "ro", &option])
}

/// A folder of the node's, as it is.
pub(crate) fn bind<const N: usize>(folder: &Path, options: [&str; N]) -> Mount {
    Mount {
        r#type: "bind".to_owned(),
        source: folder.display().to_string(),
        target: String::new(),
        options: options.map(str::to_owned).to_vec(),
    }
}

#[derive(Serialize)]
struct Volume {
    volume_type: &'static str,
    source: String,
    fs_type: &'static str,
    options: [&'static str; 1],
    image_pull: ImagePull,
}

#[derive(Serialize)]
struct ImagePull {
    metadata: BTreeMap<String, String>,
}

/// The image's name, as it was pulled.
pub(crate) const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
/// The digest of the manifest that this platform runs.
pub(crate) const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
/// What the option begins with.
const OPTION: &str = "io.katacontainers.volume=";
/// What upstream's snapshotter writes where it doesn't know the name.
const UNKNOWN_IMAGE: &str = "dummy-image-reference";
/// All options of a mount have to fit into a page of memory.
const MAX_OPTION: usize = 3800;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn decoded(mount: &Mount) -> Value {
        let option = mount.options.iter().find_map(|option| option.strip_prefix(OPTION)).unwrap();
        serde_json::from_slice(&STANDARD.decode(option).unwrap()).unwrap()
    }

    #[test]
    fn a_shim_is_told_the_image_and_its_manifest() {
        let labels = [(IMAGE_REF, "r.example/app:v1"), (MANIFEST_DIGEST, "sha256:1"), ("other", "x")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();

        let mount = guest_pull(Path::new("/run/empty"), &labels);

        assert_eq!((mount.r#type.as_str(), mount.source.as_str()), ("bind", "/run/empty"));
        assert_eq!(mount.options[..2], ["bind", "ro"]);
        assert_eq!(
            decoded(&mount),
            json!({
                "volume_type": "image_guest_pull", "source": "r.example/app:v1", "fs_type": "overlay", "options": ["ro"],
                "image_pull": { "metadata": { IMAGE_REF: "r.example/app:v1", MANIFEST_DIGEST: "sha256:1" } },
            })
        );
    }

    #[test]
    fn what_is_not_known_or_too_long_is_left_out() {
        for labels in [HashMap::new(), HashMap::from([(IMAGE_REF.to_owned(), "x".repeat(4000))])] {
            let mount = guest_pull(Path::new("/run/empty"), &labels);
            assert_eq!(decoded(&mount)["source"], "dummy-image-reference");
            assert_eq!(decoded(&mount)["image_pull"], json!({ "metadata": {} }));
        }
    }
}
