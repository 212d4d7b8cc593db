//! Tests of the whole way from a registry to unpacked layers, and what they share.

mod attacks;
mod encrypted;
mod erofs;
mod faults;
mod formats;
mod layers;
mod node_cache;
mod proxy_double;
mod registry_double;
mod sources;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tempfile::TempDir;
use wire::layer::{AnnotationPacket, Encryptor, PROVIDER_ANNOTATION_PREFIX, PUBLIC_OPTIONS_ANNOTATION};
use zeroize::Zeroizing;

use crate::digest::sha256;
use crate::documents::FilesAlone;
use crate::error::{Error, Stage};
use crate::registry::Patience;
use crate::{ImageConfig, KeyError, LayerKeys, Puller, RegistryConfig};

use registry_double::RegistryDouble;

const KEK: [u8; 32] = [9; 32];
const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(5),
    stall: Duration::from_millis(200),
    progress: Duration::from_secs(60),
    node: Duration::from_millis(500),
    backoff: Duration::from_millis(1),
    retry_after: Duration::from_millis(5),
};

/// Unwraps with one key, as the data hub would once Trustee has released it.
struct Hub([u8; 32]);

#[async_trait]
impl LayerKeys for Hub {
    async fn unwrap(&self, packet: &AnnotationPacket) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        packet.unwrap(&self.0).map_err(|e| KeyError::new(format!("{}: {e}; next: ask Trustee", packet.kid())))
    }
}

/// One guest with its work directory.
struct Guest {
    puller: Puller,
    folder: TempDir,
}

impl Guest {
    fn new(registry: &RegistryDouble) -> Self {
        Self::with_key(registry, KEK)
    }

    fn with_key(registry: &RegistryDouble, kek: [u8; 32]) -> Self {
        Self::build(registry, kek, PATIENCE, |_, _| {})
    }

    /// With a change of the configuration, which finds the guest's folder beside it.
    fn with(registry: &RegistryDouble, change: impl FnOnce(&mut ImageConfig, &Path)) -> Self {
        Self::build(registry, KEK, PATIENCE, change)
    }

    fn build(
        registry: &RegistryDouble,
        kek: [u8; 32],
        patience: Patience,
        change: impl FnOnce(&mut ImageConfig, &Path),
    ) -> Self {
        let folder = TempDir::new().unwrap();
        let mut config = ImageConfig { work_dir: folder.path().join("work"), ..Default::default() };
        let document = format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", registry.host());
        config.registry_config = Some(RegistryConfig::parse(&document).unwrap());
        change(&mut config, folder.path());
        let puller = Puller::with_patience(config, Arc::new(Hub(kek)), Arc::new(FilesAlone), patience).unwrap();
        Self { puller, folder }
    }

    fn bundle(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn unpack(&self, registry: &RegistryDouble) -> Result<Vec<PathBuf>, Error> {
        let resolved = self.puller.resolve(&registry.reference()).await?;
        Ok(self.puller.unpack(&resolved, &self.bundle("bundle")).await?.layers)
    }

    /// The failure of the image's one bad layer; nothing of it may be left.
    async fn refusal(&self, registry: &RegistryDouble) -> (Stage, String) {
        let error = self.unpack(registry).await.unwrap_err();
        let text = error.to_string();
        let Error::Layer { stage, .. } = error else { panic!("{text}") };
        assert_eq!(self.layer_dirs(), 0, "{text}");
        (stage, text)
    }

    fn layer_dirs(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("work/layers")).unwrap().count()
    }
}

/// A layer on its way into an image.
#[derive(Clone)]
struct Layer {
    media_type: String,
    blob: Vec<u8>,
    diff_id: String,
    annotations: Value,
}

impl Layer {
    fn tar(archive: &[u8]) -> Self {
        Self {
            media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
            blob: archive.to_vec(),
            diff_id: sha256(archive),
            annotations: json!({}),
        }
    }

    fn gzip(archive: &[u8]) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(archive).unwrap();
        Self {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            blob: encoder.finish().unwrap(),
            ..Self::tar(archive)
        }
    }

    /// Two frames and a skippable one between them.
    fn zstd(archive: &[u8]) -> Self {
        let (first, second) = archive.split_at(archive.len() / 2);
        let compress = |data| ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest);
        let skippable = [&0x184D_2A50_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), b"abc"].concat();
        Self {
            media_type: "application/vnd.oci.image.layer.v1.tar+zstd".to_owned(),
            blob: [compress(first), skippable, compress(second)].concat(),
            ..Self::tar(archive)
        }
    }

    /// A layer that inflates without end: gzip can't by much, zstd makes 128 KiB of four bytes.
    fn bomb() -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_path("zeros").unwrap();
        header.set_mode(0o644);
        header.set_uid(owner().0.into());
        header.set_gid(owner().1.into());
        header.set_size(1 << 30);
        header.set_cksum();
        let mut bomb = Self::zstd(header.as_bytes());
        bomb.blob.extend([0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38]);
        bomb.blob.extend([0x02, 0x00, 0x10, 0x00].repeat(8192));
        bomb
    }

    fn encrypted(mut self, kek: &[u8; 32]) -> Self {
        let mut encryptor = Encryptor::new().unwrap();
        let digest = sha256(&self.blob);
        encryptor.update(&mut self.blob).unwrap();
        let (private, public) = encryptor.finish(digest);
        let kid = "kbs:///default/key/k1".parse().unwrap();
        let packet = AnnotationPacket::wrap(kek, &kid, &private.to_json()).unwrap().to_json().unwrap();
        self.annotations = json!({
            PUBLIC_OPTIONS_ANNOTATION: public.to_annotation(),
            format!("{PROVIDER_ANNOTATION_PREFIX}attestation-agent"): STANDARD.encode(packet),
        });
        self.media_type.push_str("+encrypted");
        self
    }
}

/// Builds archives by hand, with entries that no ordinary tool would write.
struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn raw(mut self, kind: u8, name: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        let bytes = header.as_old_mut();
        bytes.name[..name.len()].copy_from_slice(name.as_bytes());
        bytes.linkname[..link.len()].copy_from_slice(link.as_bytes());
        bytes.linkflag = [kind];
        header.set_size(data.len() as u64);
        header.set_mode(mode);
        header.set_uid(owner().0.into());
        header.set_gid(owner().1.into());
        header.set_mtime(1_600_000_000);
        if matches!(kind, b'3' | b'4') {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.raw(b'0', name, "", 0o644, data)
    }

    fn directory(self, name: &str, mode: u32) -> Self {
        self.raw(b'5', name, "", mode, b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(b'2', name, target, 0o777, b"")
    }

    fn hard_link(self, name: &str, target: &str) -> Self {
        self.raw(b'1', name, target, 0o644, b"")
    }

    fn attribute(mut self, name: &str, value: &[u8]) -> Self {
        self.0.append_pax_extensions([(format!("SCHILY.xattr.{name}").as_str(), value)]).unwrap();
        self
    }

    fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// The user and group that these tests run as: anybody may own what is theirs.
fn owner() -> (u32, u32) {
    use std::os::unix::fs::MetadataExt as _;
    let own = std::fs::metadata("/proc/self").unwrap();
    (own.uid(), own.gid())
}

/// Whether this user may do what a guest may; prints why a test that needs it is skipped.
fn privileged() -> bool {
    let folder = TempDir::new().unwrap();
    let allowed = rustix::fs::setxattr(folder.path(), "trusted.test", b"1", rustix::fs::XattrFlags::empty());
    if let Err(e) = allowed {
        eprintln!("skipped: this user can't set trusted attributes: {e}");
    }
    allowed.is_ok()
}

fn read(path: &Path) -> String {
    String::from_utf8(std::fs::read(path).unwrap()).unwrap()
}

/// Bytes that no compressor makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    };
    (0..length).map(next).collect()
}
