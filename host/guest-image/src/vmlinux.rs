//! Cuts the uncompressed kernel out of an x86 boot image, so that QEMU can enter it directly (PVH).
//!
//! Source: Linux, Documentation/arch/x86/boot.rst, boot protocol 2.08 and later.

use crate::{Error, compression};

/// A boot image whose header and payload lie within its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BzImage<'a> {
    release: &'a str,
    payload: &'a [u8],
}

impl<'a> BzImage<'a> {
    /// Reads the boot header.
    ///
    /// # Errors
    /// [`Error::BzImage`] if there is none, it is older than protocol 2.08, or it points outside of the image.
    pub(crate) fn parse(image: &'a [u8]) -> Result<Self, Error> {
        let outside = || invalid("its header points outside of the file");
        if field(image, 0x1fe)? != [0x55, 0xaa] || field(image, 0x202)? != *b"HdrS" {
            return Err(invalid("it has no boot header"));
        }
        if u16::from_le_bytes(field(image, 0x206)?) < PROTOCOL {
            return Err(invalid("its boot protocol is older than 2.08"));
        }

        let [setup_sectors] = field(image, 0x1f1)?;
        let setup_sectors = if setup_sectors == 0 { 4 } else { usize::from(setup_sectors) };
        let (setup, kernel) = image.split_at_checked((setup_sectors + 1) * SECTOR).ok_or_else(outside)?;
        let offset = u32::from_le_bytes(field(image, 0x248)?) as usize;
        let length = u32::from_le_bytes(field(image, 0x24c)?) as usize;
        let payload = kernel.get(offset..).and_then(|rest| rest.get(..length)).ok_or_else(outside)?;

        let version = usize::from(u16::from_le_bytes(field(image, 0x20e)?)) + 0x200;
        let version = setup.get(version..).and_then(|rest| rest.split(|byte| matches!(byte, 0 | b' ')).next());
        let release = version.and_then(|release| str::from_utf8(release).ok());
        match release {
            Some(release) if (1..=MAX_RELEASE).contains(&release.len()) => Ok(Self { release, payload }),
            _ => Err(invalid("it names no release")),
        }
    }

    /// The kernel's release as `uname -r` prints it.
    pub(crate) fn release(&self) -> &'a str {
        self.release
    }

    /// The uncompressed kernel: an ELF file.
    ///
    /// # Errors
    /// [`Error::Unpack`] naming the compression, [`Error::BzImage`] if what comes out is no ELF file.
    pub(crate) fn vmlinux(&self) -> Result<Vec<u8>, Error> {
        let unpack = |reason| Error::Unpack { what: "the kernel".to_owned(), reason };
        // Linux' build appends the unpacked length, and gzip's own trailer is the same number.
        let (_, length) = self.payload.split_last_chunk().ok_or_else(|| unpack("it is empty".to_owned()))?;
        let length = u64::from(u32::from_le_bytes(*length));
        if length > MAX_VMLINUX {
            return Err(unpack(format!("it says that it unpacks to {length} bytes")));
        }
        let vmlinux = compression::unpack(self.payload, length).map_err(unpack)?;
        if vmlinux.len() as u64 != length || !vmlinux.starts_with(b"\x7fELF") {
            return Err(invalid("it does not unpack to an ELF file of the length that it says"));
        }
        Ok(vmlinux)
    }
}

fn field<const N: usize>(image: &[u8], at: usize) -> Result<[u8; N], Error> {
    let field = image.get(at..).and_then(|rest| rest.first_chunk());
    field.copied().ok_or_else(|| invalid("it is too short"))
}

fn invalid(reason: &str) -> Error {
    Error::BzImage(reason.to_owned())
}

const SECTOR: usize = 512;
/// The first version with the payload's place in the header.
const PROTOCOL: u16 = 0x0208;
const MAX_VMLINUX: u64 = 512 << 20;
/// `UTS_RELEASE` has at most 64 bytes.
const MAX_RELEASE: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;
    use crate::synthetic::{bzimage, gzip};

    const VMLINUX: &[u8] = b"\x7fELF and the rest of a kernel";

    #[test]
    fn the_kernel_comes_out_of_each_supported_compression() {
        let length = VMLINUX.len() as u32;
        let zstd = bzimage("6.12.0-cloud", &compress_to_vec(VMLINUX, CompressionLevel::Fastest), length);
        // For gzip the trailer's length is the last field already.
        let packed = gzip(VMLINUX);
        let gzip = bzimage("6.12.0-cloud", &packed[..packed.len() - 4], length);
        for image in [zstd, gzip] {
            let parsed = BzImage::parse(&image).unwrap();
            assert_eq!(parsed.release(), "6.12.0-cloud");
            assert_eq!(parsed.vmlinux().unwrap(), VMLINUX);
        }
    }

    #[test]
    fn an_unsupported_compression_is_named() {
        let image = bzimage("6.12.0", &[0x02, 0x21, 0x4c, 0x18], 4);
        let error = BzImage::parse(&image).unwrap().vmlinux().unwrap_err().to_string();
        assert!(error.contains("the kernel can't be unpacked: lz4: not supported; next:"), "{error}");
    }

    #[test]
    fn what_is_not_a_boot_image_is_refused_with_its_reason() {
        let good = bzimage("6.12.0", &gzip(VMLINUX), 4);
        let mut old = good.clone();
        old[0x206] = 7;
        let mut far = good.clone();
        far[0x24b] = 0x7f;
        let mut nameless = good.clone();
        nameless[0x300] = 0;
        for (image, reason) in [
            (&b"\x7fELF"[..], "too short"),
            (&[0; 2048], "no boot header"),
            (&old, "older than 2.08"),
            (&far, "outside"),
            (&nameless, "no release"),
        ] {
            let error = BzImage::parse(image).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_kernel_that_unpacks_to_more_than_it_says_is_refused() {
        let image = bzimage("6.12.0", &compress_to_vec(VMLINUX, CompressionLevel::Fastest), 4);
        let error = BzImage::parse(&image).unwrap().vmlinux().unwrap_err().to_string();
        assert!(error.contains("more than 4 bytes"), "{error}");
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(at in 0x1f0..0x250usize, to in any::<[u8; 4]>(), length in 0..1100usize) {
            let mut image = bzimage("6.12.0", &gzip(VMLINUX), VMLINUX.len() as u32);
            image[at..at + 4].copy_from_slice(&to);
            for image in [&image[..], &image[..length.min(image.len())]] {
                if let Ok(parsed) = BzImage::parse(image) {
                    let _ = parsed.vmlinux();
                }
            }
        }
    }
}
