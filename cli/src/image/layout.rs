//! OCI layouts: an image as a folder of blobs, read with every digest checked, written in one step.

use std::fs::{self, File, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, Digest, DigestAlgorithm, ImageIndex};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::Error;

/// A layout that is read.
pub(super) struct Layout {
    path: PathBuf,
    index: ImageIndex,
    tag: Option<String>,
}

impl Layout {
    /// Opens `DIR`, `oci:DIR` or `oci:DIR:TAG`.
    pub(super) fn open(source: &str) -> Result<Self, Error> {
        let (path, tag) = match source.strip_prefix("oci:") {
            None => (source, None),
            // The folder's own name may hold a colon.
            Some(rest) if Path::new(rest).is_dir() => (rest, None),
            Some(rest) => rest.rsplit_once(':').map_or((rest, None), |(path, tag)| (path, Some(tag.to_owned()))),
        };
        let path = PathBuf::from(path);
        let unusable = |cause: String| Error::Source { path: path.clone(), cause };
        let read = |name: &str| -> Result<Vec<u8>, Error> {
            let mut bytes = Vec::new();
            let file = File::open(path.join(name)).map_err(|e| unusable(format!("{name}: {e}")))?;
            file.take(MAX_DOCUMENT).read_to_end(&mut bytes).map_err(|e| unusable(format!("{name}: {e}")))?;
            Ok(bytes)
        };
        let marker: serde_json::Value = serde_json::from_slice(&read("oci-layout")?).unwrap_or_default();
        if marker["imageLayoutVersion"] != LAYOUT_VERSION {
            return Err(unusable(format!("oci-layout does not say version {LAYOUT_VERSION}")));
        }
        let index = serde_json::from_slice(&read(INDEX_FILE)?).map_err(|e| unusable(format!("{INDEX_FILE}: {e}")))?;
        Ok(Self { path, index, tag })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The image of the tag, or the only one.
    pub(super) fn image(&self) -> Result<Descriptor, Error> {
        let found = self.images();
        match (&found[..], &self.tag) {
            ([only], _) => Ok((*only).clone()),
            (all, wanted) => Err(Error::Choice {
                path: self.path.clone(),
                cause: match wanted {
                    Some(tag) => format!("{} images have the tag {tag:?}", all.len()),
                    None => format!("it holds {} images", all.len()),
                },
                tags: self.images_of(None).into_iter().filter_map(tag).collect(),
            }),
        }
    }

    /// The images of the tag, or all of them. Signatures are none.
    pub(super) fn images(&self) -> Vec<&Descriptor> {
        self.images_of(self.tag.as_deref())
    }

    /// What has this tag, whatever it is.
    pub(super) fn tagged(&self, wanted: &str) -> Option<&Descriptor> {
        self.index.manifests().iter().find(|entry| tag(entry).as_deref() == Some(wanted))
    }

    /// Adds a blob, and tells its digest and length.
    pub(super) fn add(&self, bytes: &[u8]) -> Result<(Digest, u64), Error> {
        let name = hex::encode(Sha256::digest(bytes));
        let path = self.path.join(BLOBS).join(&name);
        self.replace(&path, bytes)?;
        let digest = format!("sha256:{name}").parse::<Digest>();
        Ok((digest.map_err(|e| Error::Write { path, source: std::io::Error::other(e) })?, bytes.len() as u64))
    }

    /// Makes `entry` what has the tag; whoever reads the layout meanwhile sees it before or after.
    pub(super) fn set_tag(&self, tag: &str, entry: &Descriptor) -> Result<(), Error> {
        let mut index = self.index.clone();
        let mut entry = entry.clone();
        entry.set_annotations(Some([(TAG.to_owned(), tag.to_owned())].into()));
        let mut entries: Vec<_> =
            index.manifests().iter().filter(|other| self::tag(other).as_deref() != Some(tag)).cloned().collect();
        entries.push(entry);
        index.set_manifests(entries);
        self.replace(&self.path.join(INDEX_FILE), &json(&index)?)
    }

    fn images_of(&self, wanted: Option<&str>) -> Vec<&Descriptor> {
        let wanted = |entry: &&Descriptor| match (tag(entry), wanted) {
            (tag, Some(wanted)) => tag.as_deref() == Some(wanted),
            (Some(tag), None) => !is_signature_tag(&tag),
            (None, None) => true,
        };
        self.index.manifests().iter().filter(wanted).collect()
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let failed = |source| Error::Write { path: path.to_owned(), source };
        let mut file = tempfile::NamedTempFile::new_in(&self.path).map_err(failed)?;
        file.write_all(bytes).map_err(failed)?;
        fs::set_permissions(file.path(), Permissions::from_mode(0o644)).map_err(failed)?;
        file.persist(path).map_err(|e| failed(e.error)).map(drop)
    }

    /// A manifest, an index or a configuration.
    pub(super) fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        if descriptor.size() > MAX_DOCUMENT {
            return Err(blob_error(descriptor, "it is larger than 4 MiB, too large for a manifest"));
        }
        let mut bytes = Vec::new();
        self.stream(descriptor, |chunk| {
            bytes.extend_from_slice(chunk);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Hands a blob out in pieces, and checks length and digest in the end.
    fn stream(
        &self,
        descriptor: &Descriptor,
        mut sink: impl FnMut(&mut [u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let digest = descriptor.digest();
        if *digest.algorithm() != DigestAlgorithm::Sha256 {
            return Err(blob_error(descriptor, "only sha256 digests are supported"));
        }
        let path = self.path.join(BLOBS).join(digest.digest());
        let mut file = File::open(path).map_err(|e| blob_error(descriptor, e))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; BUFFER];
        let mut length = 0;
        loop {
            let count = file.read(&mut buffer).map_err(|e| blob_error(descriptor, e))?;
            if count == 0 {
                break;
            }
            length += count as u64;
            hasher.update(&buffer[..count]);
            sink(&mut buffer[..count])?;
        }
        if length != descriptor.size() || hex::encode(hasher.finalize()) != digest.digest() {
            return Err(blob_error(descriptor, "its content is not that of its digest"));
        }
        Ok(())
    }
}

/// A layout that is written beside its destination and moved there when it is complete.
pub(super) struct Writer {
    staging: TempDir,
    destination: PathBuf,
}

impl Writer {
    pub(super) fn create(destination: &Path) -> Result<Self, Error> {
        let parent = match destination.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let created = tempfile::Builder::new().prefix(".encrypting-").tempdir_in(parent).and_then(|staging| {
            fs::create_dir_all(staging.path().join(BLOBS))?;
            fs::set_permissions(staging.path(), Permissions::from_mode(0o755))?;
            Ok(staging)
        });
        let staging = created.map_err(|source| Error::Write { path: destination.to_owned(), source })?;
        Ok(Self { staging, destination: destination.to_owned() })
    }

    /// Copies a blob as it is.
    pub(super) fn copy(&mut self, source: &Layout, blob: &Descriptor) -> Result<(), Error> {
        self.transformed(source, blob, |_| Ok(())).map(drop)
    }

    /// Writes a blob that `transform` changes in place, piece by piece, and tells its new digest.
    pub(super) fn transformed(
        &mut self,
        source: &Layout,
        blob: &Descriptor,
        mut transform: impl FnMut(&mut [u8]) -> Result<(), Error>,
    ) -> Result<Digest, Error> {
        let failed = |source| Error::Write { path: self.destination.clone(), source };
        let mut file = tempfile::NamedTempFile::new_in(self.staging.path()).map_err(failed)?;
        let mut hasher = Sha256::new();
        source.stream(blob, |chunk| {
            transform(chunk)?;
            hasher.update(&*chunk);
            file.write_all(chunk).map_err(failed)
        })?;
        self.place(file, hasher)
    }

    /// Writes a manifest or an index; tells digest and length.
    pub(super) fn document(&mut self, bytes: &[u8]) -> Result<(Digest, u64), Error> {
        let failed = |source| Error::Write { path: self.destination.clone(), source };
        let mut file = tempfile::NamedTempFile::new_in(self.staging.path()).map_err(failed)?;
        file.write_all(bytes).map_err(failed)?;
        Ok((self.place(file, Sha256::new().chain_update(bytes))?, bytes.len() as u64))
    }

    /// Writes the index with its one image and moves the layout to its place.
    pub(super) fn finish(self, image: Descriptor) -> Result<(), Error> {
        let failed = |source| Error::Write { path: self.destination.clone(), source };
        let marker = format!(r#"{{"imageLayoutVersion":"{LAYOUT_VERSION}"}}"#);
        let index = serde_json::json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [image] });
        fs::write(self.staging.path().join("oci-layout"), marker).map_err(failed)?;
        fs::write(self.staging.path().join(INDEX_FILE), json(&index)?).map_err(failed)?;
        fs::rename(self.staging.path(), &self.destination).map_err(failed)?;
        // Moved away: there is nothing left to remove.
        let _ = self.staging.keep();
        Ok(())
    }

    fn place(&self, file: tempfile::NamedTempFile, hasher: Sha256) -> Result<Digest, Error> {
        let failed = |source| Error::Write { path: self.destination.clone(), source };
        let name = hex::encode(hasher.finalize());
        fs::set_permissions(file.path(), Permissions::from_mode(0o644)).map_err(failed)?;
        file.persist(self.staging.path().join(BLOBS).join(&name)).map_err(|e| failed(e.error))?;
        format!("sha256:{name}").parse().map_err(|e| failed(std::io::Error::other(e)))
    }
}

/// The tag under which cosign looks for the signatures of a digest.
pub(super) fn signature_tag(digest: &Digest) -> String {
    format!("{}-{}.sig", digest.algorithm(), digest.digest())
}

/// The tag of an entry.
pub(super) fn tag(entry: &Descriptor) -> Option<String> {
    entry.annotations().as_ref().and_then(|all| all.get(TAG).cloned())
}

pub(super) fn is_index(descriptor: &Descriptor) -> bool {
    [INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"].contains(&descriptor.media_type().as_ref())
}

/// What image builders put beside an image to describe it.
pub(super) fn is_attestation(descriptor: &Descriptor) -> bool {
    let annotations = descriptor.annotations().as_ref();
    annotations.and_then(|all| all.get("vnd.docker.reference.type")).is_some_and(|kind| kind == "attestation-manifest")
}

fn is_signature_tag(tag: &str) -> bool {
    let digest = tag.strip_prefix("sha256-").and_then(|rest| rest.strip_suffix(".sig"));
    digest.is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The types of filesystem layers that guests know, as image builders write them.
pub(super) fn is_layer(media_type: &str) -> bool {
    [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.erofs.layer.v1",
    ]
    .iter()
    .filter_map(|prefix| media_type.strip_prefix(prefix))
    .any(|rest| ["", "+gzip", ".gzip", "+zstd", ".zstd"].contains(&rest))
}

pub(super) fn json(document: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(document)
        .map_err(|e| Error::Write { path: PathBuf::from("manifest"), source: std::io::Error::other(e) })
}

fn blob_error(descriptor: &Descriptor, cause: impl std::fmt::Display) -> Error {
    Error::Blob { digest: descriptor.digest().to_string(), cause: cause.to_string() }
}

/// What the media type of an encrypted layer ends with.
pub(super) const ENCRYPTED: &str = "+encrypted";
const LAYOUT_VERSION: &str = "1.0.0";
const INDEX_FILE: &str = "index.json";
const BLOBS: &str = "blobs/sha256";
const TAG: &str = "org.opencontainers.image.ref.name";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MAX_DOCUMENT: u64 = 4 << 20;
const BUFFER: usize = 64 << 10;
