//! What a guest image consists of: the record beside the files, and the reference values made from it.

use std::collections::BTreeMap;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha384};

/// The content of `manifest.json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The manifest's own version: 1.
    pub schema: u32,
    /// The kernel's release as `uname -r` prints it.
    pub kernel_release: String,
    /// Name and version of the distribution's package, absent for a kernel that was given as files.
    pub kernel_package: Option<String>,
    /// The kernel command line the image is made for: [`crate::COMMAND_LINE`] at the time of the build.
    pub command_line: String,
    /// File names of the modules in the order in which guestd loads them.
    pub modules: Vec<String>,
    /// The uncompressed kernel.
    pub vmlinux: Artifact,
    /// The distribution's kernel image.
    pub bzimage: Artifact,
    /// The initramfs: what the image adds to the kernel.
    pub initramfs: Artifact,
}

/// Size and digests of one file, the digests in lower-case hexadecimal.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the whole file.
    #[serde(with = "hex::serde")]
    pub sha256: [u8; 32],
    /// SHA-384 of the whole file.
    #[serde(with = "hex::serde")]
    pub sha384: [u8; 48],
}

impl Manifest {
    /// Reads `manifest.json`.
    ///
    /// # Errors
    /// The reason why this is not a manifest of this version.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        if manifest.schema != SCHEMA {
            return Err(format!("its schema is {}, expected {SCHEMA}", manifest.schema));
        }
        Ok(manifest)
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        pretty(self)
    }

    /// The content of `reference-values.json`: name to list of values, as Trustee's `sample` extractor takes it.
    ///
    /// `cocoon_kernel_sha384` is the digest of the `bzImage`, since the other form is never measured. Launch
    /// measurements are not among the values: they also depend on firmware.
    pub fn reference_values(&self) -> Vec<u8> {
        pretty(&BTreeMap::from([
            ("cocoon_kernel_sha384", [hex::encode(self.bzimage.sha384)]),
            ("cocoon_initramfs_sha384", [hex::encode(self.initramfs.sha384)]),
        ]))
    }
}

impl Artifact {
    /// Of what `source` holds to its end, piece by piece.
    pub(crate) fn read(mut source: impl Read) -> io::Result<Self> {
        let (mut sha256, mut sha384, mut size) = (Sha256::new(), Sha384::new(), 0);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            size += length as u64;
            sha256.update(&buffer[..length]);
            sha384.update(&buffer[..length]);
        }
        Ok(Self { size, sha256: sha256.finalize().into(), sha384: sha384.finalize().into() })
    }

    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { size: bytes.len() as u64, sha256: Sha256::digest(bytes).into(), sha384: Sha384::digest(bytes).into() }
    }
}

fn pretty(value: &impl Serialize) -> Vec<u8> {
    let mut json = serde_json::to_vec_pretty(value).expect("names, numbers and strings have a JSON form");
    json.push(b'\n');
    json
}

/// The version this crate writes and reads.
pub(crate) const SCHEMA: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            schema: SCHEMA,
            kernel_release: "6.12.0-cloud".to_owned(),
            kernel_package: None,
            command_line: "quiet".to_owned(),
            modules: vec!["vsock.ko".to_owned()],
            vmlinux: Artifact::of(b"vmlinux"),
            bzimage: Artifact::of(b"bzImage"),
            initramfs: Artifact::of(b"initramfs"),
        }
    }

    #[test]
    fn a_manifest_comes_back() {
        assert_eq!(Manifest::parse(&manifest().to_json()).unwrap(), manifest());
    }

    #[test]
    fn a_manifest_of_another_version_or_with_unknown_keys_is_refused() {
        let json = String::from_utf8(manifest().to_json()).unwrap();
        for (from, to, reason) in [
            ("\"schema\": 1", "\"schema\": 2", "its schema is 2"),
            ("\"schema\": 1", "\"schema\": 1, \"extra\": 0", "extra"),
            ("\"sha256\": \"", "\"sha256\": \"00", "length"),
        ] {
            let error = Manifest::parse(json.replace(from, to).as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn reference_values_are_lists_by_name() {
        let values: serde_json::Value = serde_json::from_slice(&manifest().reference_values()).unwrap();
        assert_eq!(values["cocoon_kernel_sha384"], serde_json::json!([hex::encode(Sha384::digest(b"bzImage"))]));
        assert_eq!(values["cocoon_initramfs_sha384"], serde_json::json!([hex::encode(Sha384::digest(b"initramfs"))]));
    }
}
