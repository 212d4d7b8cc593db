//! Which image a container's guest is to pull: named by a snapshotter's volume, or by the annotations of the pod.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use containerd_shim_protos::types::mount::Mount;
use serde::Deserialize;
use wire_ttrpc::agent::Storage;

use crate::{Error, Kind, Spec};

/// Where a container's root is in its guest.
pub(crate) fn rootfs(id: &str) -> String {
    format!("/run/kata-containers/{id}/rootfs")
}

/// The request to the guest to pull the image itself. What containerd unpacked on the host is never used.
///
/// # Errors
/// [`Error::Image`] where nothing names an image, or a snapshotter wants something else.
pub(crate) fn storage(id: &str, kind: &Kind, spec: &Spec, mounts: &[Mount]) -> Result<Storage, Error> {
    let volume = mounts.iter().flat_map(|mount| &mount.options).find_map(|option| option.strip_prefix(VOLUME));
    let volume = volume.map(Volume::parse).transpose()?;
    let annotated = ["io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName"]
        .iter()
        .find_map(|name| spec.annotations.get(*name))
        .filter(|name| !name.is_empty());
    let named = volume.as_ref().map(|it| &it.source).filter(|it| !it.is_empty() && *it != DUMMY);
    let image = match kind {
        // The guest has its own.
        Kind::Sandbox => "pause",
        // What the pod's author wrote, where it is known.
        _ => annotated.or(named).ok_or_else(unnamed)?,
    };
    let metadata: BTreeMap<String, String> = match &volume {
        Some(volume) => volume.image_pull.metadata.clone(),
        None => spec
            .annotations
            .iter()
            .filter(|(name, _)| name.starts_with("io.kubernetes."))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
    };
    Ok(Storage {
        driver: DRIVER.to_owned(),
        driver_options: vec![format!("{DRIVER}={}", serde_json::json!({"metadata": metadata}))],
        source: image.to_owned(),
        fstype: "overlay".to_owned(),
        mount_point: rootfs(id),
        ..Storage::default()
    })
}

fn unnamed() -> Error {
    Error::Image(
        "nothing names the container's image; next: give the container the annotation io.kubernetes.cri.image-name, as \
         containerd's CRI does"
            .to_owned(),
    )
}

/// What a snapshotter for guest pull puts among the options of the root's mount.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Volume {
    volume_type: String,
    source: String,
    image_pull: ImagePull,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ImagePull {
    metadata: BTreeMap<String, String>,
}

impl Volume {
    fn parse(encoded: &str) -> Result<Self, Error> {
        let failed = |reason: String| Error::Image(format!("the snapshotter's volume can't be read: {reason}"));
        let json = STANDARD.decode(encoded).map_err(|error| failed(error.to_string()))?;
        let volume: Self = serde_json::from_slice(&json).map_err(|error| failed(error.to_string()))?;
        if volume.volume_type == DRIVER {
            return Ok(volume);
        }
        Err(Error::Image(format!(
            "the snapshotter offers a volume of type {:?}, and guests take {DRIVER:?}; next: configure it for guest pull",
            volume.volume_type
        )))
    }
}

const DRIVER: &str = "image_guest_pull";
/// What the option of a mount begins with that a snapshotter for guest pull gives.
pub(crate) const VOLUME: &str = "io.katacontainers.volume=";
/// What a snapshotter writes that was not told the image's name.
const DUMMY: &str = "dummy-image-reference";

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Kind {
        Kind::Container { sandbox: "s".into() }
    }

    fn spec(annotations: &[(&str, &str)]) -> Spec {
        let annotations = annotations.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Spec { annotations, ..Spec::default() }
    }

    fn mount(json: &str) -> Mount {
        let options = vec!["lowerdir=/x".to_owned(), format!("{VOLUME}{}", STANDARD.encode(json))];
        Mount { type_: "fuse.nydus-overlayfs".into(), options, ..Mount::default() }
    }

    #[test]
    fn the_pod_s_annotation_names_the_image() {
        let spec = spec(&[
            ("io.kubernetes.cri.image-name", "registry/busybox:1"),
            ("io.katacontainers.config.hypervisor.cc_init_data", "long"),
        ]);
        let storage = storage("c", &pod(), &spec, &[Mount::default()]).unwrap();
        assert_eq!((storage.driver.as_str(), storage.source.as_str()), ("image_guest_pull", "registry/busybox:1"));
        assert_eq!(storage.mount_point, "/run/kata-containers/c/rootfs");
        assert_eq!(
            storage.driver_options,
            [r#"image_guest_pull={"metadata":{"io.kubernetes.cri.image-name":"registry/busybox:1"}}"#]
        );
    }

    #[test]
    fn a_snapshotter_names_it_where_no_annotation_does() {
        let json = r#"{"volume_type":"image_guest_pull","source":"r/i:2","fs_type":"","options":[],
            "image_pull":{"metadata":{"containerd.io/snapshot/cri.image-ref":"r/i:2"}}}"#;
        let storage = storage("c", &Kind::Single, &spec(&[]), &[mount(json)]).unwrap();
        assert_eq!(storage.source, "r/i:2");
        assert!(storage.driver_options[0].contains("cri.image-ref"));
    }

    #[test]
    fn a_sandbox_runs_the_guest_s_own_pause() {
        let storage = storage("s", &Kind::Sandbox, &spec(&[("io.kubernetes.cri.image-name", "evil")]), &[]).unwrap();
        assert_eq!(storage.source, "pause");
    }

    #[test]
    fn without_a_name_there_is_no_container() {
        let dummy = r#"{"volume_type":"image_guest_pull","source":"dummy-image-reference"}"#;
        let other = r#"{"volume_type":"layer_raw_block","source":"/x"}"#;
        for (mounts, reason) in [
            (vec![], "nothing names"),
            (vec![mount(dummy)], "nothing names"),
            (vec![mount(other)], "layer_raw_block"),
            (vec![mount("{")], "can't be read"),
        ] {
            let error = storage("c", &Kind::Single, &spec(&[]), &mounts).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
