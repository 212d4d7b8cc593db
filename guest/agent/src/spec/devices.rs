//! The disks that a container gets as devices. It gets no others beside those that every container has.

use std::path::{Component, Path};

use serde_json::{Value, json};
use wire_ttrpc::oci;

use super::Error;
use crate::creation::TRUSTED_STORE;
use crate::devices::Disk;

/// The devices of `config.json`: the guest's numbers of each disk, with owner and mode as the request has them.
///
/// # Errors
/// [`Error`] for a device that is no such disk, or in a place that is not for one.
pub(super) fn build(requested: &[oci::LinuxDevice], disks: &[(String, Disk)]) -> Result<Vec<Value>, Error> {
    let known =
        |device: &oci::LinuxDevice| device.Path == TRUSTED_STORE || disks.iter().any(|(path, _)| *path == device.Path);
    if !requested.iter().all(known) {
        return Err(Error::Unsupported("devices that are not the guest's disks"));
    }
    disks.iter().map(|(path, disk)| describe(path, disk, requested)).collect()
}

fn describe(path: &str, disk: &Disk, requested: &[oci::LinuxDevice]) -> Result<Value, Error> {
    let mut parts = Path::new(path).components();
    let below = (parts.next(), parts.next()) == (Some(Component::RootDir), Some(Component::Normal("dev".as_ref())));
    let plain = parts.clone().count() >= 1 && parts.all(|part| matches!(part, Component::Normal(_)));
    if !below
        || !plain
        || path.len() > 255
        || path.contains('\0')
        || TAKEN.iter().any(|taken| Path::new(path).starts_with(taken))
    {
        return Err(Error::Unsupported("a disk in a place that is not for one"));
    }
    let number = |text: &str| text.parse::<i64>().ok();
    let numbers = disk.number.split_once(':').and_then(|(major, minor)| Some((number(major)?, number(minor)?)));
    let (major, minor) = numbers.ok_or(Error::Unsupported("a disk without numbers"))?;
    let asked = requested.iter().find(|device| device.Path == path).cloned().unwrap_or_default();
    let mode = if asked.FileMode == 0 { 0o660 } else { asked.FileMode & 0o666 };
    Ok(json!({
        "path": path, "type": "b", "major": major, "minor": minor, "fileMode": mode, "uid": asked.UID, "gid": asked.GID,
    }))
}

/// Devices that every container has.
const TAKEN: [&str; 12] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/console",
    "/dev/ptmx",
    "/dev/pts",
    "/dev/shm",
    "/dev/mqueue",
    "/dev/fd",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn device(path: &str) -> oci::LinuxDevice {
        // The numbers are the host's, and mean something else in the guest.
        oci::LinuxDevice {
            Path: path.into(),
            Type: "c".into(),
            Major: 1,
            Minor: 1,
            FileMode: 0o4660,
            UID: 7,
            ..Default::default()
        }
    }

    fn disk(path: &str) -> (String, Disk) {
        (path.to_owned(), Disk { path: "/dev/vdb".into(), number: "254:16".into() })
    }

    #[test]
    fn a_disk_has_the_guest_s_numbers_and_the_request_s_owner() {
        let devices = build(&[device("/dev/data"), device(TRUSTED_STORE)], &[disk("/dev/data")]).unwrap();
        let expected =
            json!({"path": "/dev/data", "type": "b", "major": 254, "minor": 16, "fileMode": 0o660, "uid": 7, "gid": 0});
        assert_eq!(devices, [expected]);
    }

    #[test]
    fn no_other_device_is_there_and_none_hides_another() {
        assert!(build(&[device("/dev/kmsg")], &[disk("/dev/data")]).is_err());
        for place in ["/dev", "/dev/", "/data", "dev/x", "/dev/../x", "/dev/null", "/dev/shm/x", ""] {
            assert!(build(&[], &[disk(place)]).is_err(), "{place}");
        }
    }
}
