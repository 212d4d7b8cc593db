//! What a media type says about a layer: how it is compressed, and whether it is encrypted.

/// How to read a layer's blob.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct LayerFormat {
    pub(crate) content: Content,
    pub(crate) compression: Compression,
    pub(crate) encrypted: bool,
}

/// What is in a layer's blob.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Content {
    /// A tar archive, to be unpacked.
    Archive,
    /// An EROFS image, to be mounted as it is.
    Erofs,
}

/// How an archive or an image is compressed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl LayerFormat {
    /// Knows the layer types of OCI, Docker and containerd's EROFS, each also with ocicrypt's suffix `+encrypted`.
    pub(crate) fn from_media_type(media_type: &str) -> Option<Self> {
        let (plain, encrypted) = match media_type.strip_suffix("+encrypted") {
            Some(plain) => (plain, true),
            None => (media_type, false),
        };
        let (content, compression) = match plain {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar" => (Content::Archive, Compression::None),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => (Content::Archive, Compression::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd" => (Content::Archive, Compression::Zstd),
            "application/vnd.erofs.layer.v1" => (Content::Erofs, Compression::None),
            "application/vnd.erofs.layer.v1+zstd" => (Content::Erofs, Compression::Zstd),
            _ => return None,
        };
        Some(Self { content, compression, encrypted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_type_is_known_with_and_without_encryption() {
        let oci = ["application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.nondistributable.v1.tar"];
        let docker =
            ["application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar"];
        for (kinds, separator) in [(oci, '+'), (docker, '.')] {
            for kind in kinds {
                for (suffix, compression) in
                    [("", Compression::None), ("gzip", Compression::Gzip), ("zstd", Compression::Zstd)]
                {
                    let plain = if suffix.is_empty() { kind.to_owned() } else { format!("{kind}{separator}{suffix}") };
                    for (media_type, encrypted) in [(plain.clone(), false), (format!("{plain}+encrypted"), true)] {
                        let expected = LayerFormat { content: Content::Archive, compression, encrypted };
                        assert_eq!(LayerFormat::from_media_type(&media_type), Some(expected), "{media_type}");
                    }
                }
            }
        }
        for (media_type, compression, encrypted) in [
            ("application/vnd.erofs.layer.v1", Compression::None, false),
            ("application/vnd.erofs.layer.v1+zstd", Compression::Zstd, false),
            ("application/vnd.erofs.layer.v1+encrypted", Compression::None, true),
        ] {
            let expected = LayerFormat { content: Content::Erofs, compression, encrypted };
            assert_eq!(LayerFormat::from_media_type(media_type), Some(expected), "{media_type}");
        }
        for media_type in [
            "",
            "+encrypted",
            "application/vnd.in-toto+json",
            "application/vnd.oci.image.layer.v1.tar+xz",
            "application/vnd.oci.image.layer.v1.tar+encrypted+encrypted",
            "application/vnd.docker.image.rootfs.diff.tar+gzip",
        ] {
            assert_eq!(LayerFormat::from_media_type(media_type), None);
        }
    }
}
