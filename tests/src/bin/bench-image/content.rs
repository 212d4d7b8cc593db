//! Images of a given shape, always the same bytes: text, code, tables and noise, as real images hold them.

use std::fs;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tar::{Builder, Header};

/// How an image is made up.
#[derive(Clone, Copy)]
pub struct Shape {
    layers: usize,
    files_a_layer: usize,
    /// The mean length of a file; lengths spread around it as they do on real systems.
    mean: u64,
    /// All files have the same length.
    even: bool,
}

impl Shape {
    /// Six layers of 706 MB together.
    pub const MIXED: Self = Self { layers: 6, files_a_layer: 2000, mean: 58_800, even: false };
    /// What costs is the number of files.
    pub const SMALL: Self = Self { layers: 3, files_a_layer: 30_000, mean: 2000, even: false };
    /// One layer: nothing else is there to do meanwhile.
    pub const LARGE: Self = Self { layers: 1, files_a_layer: 4, mean: 100_000_000, even: true };
    /// As deep as images get.
    pub const DEEP: Self = Self { layers: 40, files_a_layer: 100, mean: 50_000, even: false };

    /// Makes the image in an OCI layout, with gzip layers and the tag `latest`.
    pub fn layout(self, folder: &Path, name: &str) -> PathBuf {
        let layout = folder.join(name);
        fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        let blob = |media_type: &str, bytes: &[u8]| {
            let digest = hash(bytes);
            fs::write(layout.join("blobs").join(digest.replace(':', "/")), bytes).unwrap();
            json!({ "mediaType": format!("application/vnd.oci.image.{media_type}"), "digest": digest, "size": bytes.len() })
        };
        let mut random = Random(1);
        let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
        for index in 0..self.layers {
            let archive = self.archive(index, &mut random);
            diff_ids.push(hash(&archive));
            let mut compressed = GzEncoder::new(Vec::new(), Compression::default());
            std::io::copy(&mut &archive[..], &mut compressed).unwrap();
            layers.push(blob("layer.v1.tar+gzip", &compressed.finish().unwrap()));
        }
        let text = |document: Value| document.to_string().into_bytes();
        let rootfs = json!({ "type": "layers", "diff_ids": diff_ids });
        let config =
            json!({ "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/bin/true"] }, "rootfs": rootfs });
        let config = blob("config.v1+json", &text(config));
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers });
        let mut manifest = blob("manifest.v1+json", &text(manifest));
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
        fs::write(layout.join("index.json"), text(json!({ "schemaVersion": 2, "manifests": [manifest] }))).unwrap();
        fs::write(layout.join("oci-layout"), text(json!({ "imageLayoutVersion": "1.0.0" }))).unwrap();
        layout
    }

    fn archive(self, layer: usize, random: &mut Random) -> Vec<u8> {
        let mut archive = Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_mtime(1_700_000_000);
        let mut file = Vec::new();
        for index in 0..self.files_a_layer {
            let folder = format!("opt/layer-{layer}/d{}", index / 50);
            if index % 50 == 0 {
                header.set_mode(0o755);
                header.set_size(0);
                header.set_entry_type(tar::EntryType::Directory);
                archive.append_data(&mut header, &folder, &[][..]).unwrap();
            }
            file.clear();
            let length = if self.even { self.mean } else { random.length(self.mean) };
            random.content(length as usize, &mut file);
            header.set_mode(0o644);
            header.set_size(file.len() as u64);
            header.set_entry_type(tar::EntryType::Regular);
            archive.append_data(&mut header, format!("{folder}/file-{index}"), &file[..]).unwrap();
        }
        archive.into_inner().unwrap()
    }
}

fn hash(bytes: &[u8]) -> String {
    let digits = digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("sha256:{digits}")
}

/// The bytes of all blobs of a layout.
pub fn size(layout: &Path) -> u64 {
    fs::read_dir(layout.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

/// Knuth's linear generator: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Most lengths are far below the mean and a few are far above it.
    fn length(&mut self, mean: u64) -> u64 {
        let low = mean / 8;
        match self.below(10) {
            0 => mean * 4 + self.below(mean * 6),
            1..=3 => mean / 2 + self.below(mean / 2),
            _ => self.below(low * 2 + 1),
        }
    }

    fn content(&mut self, length: usize, out: &mut Vec<u8>) {
        while out.len() < length {
            let end = out.len() + 512 + self.below(8192) as usize;
            match self.below(40) {
                0..=17 => self.text(end, out),
                18..=32 => self.code(end, out),
                33..=38 => out.resize(end, 0),
                _ => (out.len()..end).for_each(|_| out.push(self.next() as u8)),
            }
        }
        out.truncate(length);
    }

    /// Words, the frequent ones short and few.
    fn text(&mut self, end: usize, out: &mut Vec<u8>) {
        while out.len() < end {
            let rank = self.below(24) * self.below(24);
            let mut word = Self(rank + 7);
            let letters = 2 + rank / 64 + word.below(6);
            out.extend((0..letters).map(|_| b'a' + word.below(26) as u8));
            out.push(if self.below(12) == 0 { b'\n' } else { b' ' });
        }
    }

    /// Instructions: a few hundred patterns with an operand of their own.
    fn code(&mut self, end: usize, out: &mut Vec<u8>) {
        while out.len() < end {
            let mut pattern = Self(self.below(12) * self.below(12) + 1000);
            let length = 3 + pattern.below(5);
            out.extend((0..length).map(|_| pattern.next() as u8));
            out.push(self.below(32) as u8);
        }
    }
}
