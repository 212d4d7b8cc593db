//! Unpacks what distributions pack kernels and modules with, in bounded memory.

use std::io::{self, Read};

use flate2::read::GzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::StreamingDecoder;

/// Unpacks `packed`, recognised by its magic, to at most `limit` bytes.
///
/// # Errors
/// The compression's name and what went wrong.
pub(crate) fn unpack(packed: &[u8], limit: u64) -> Result<Vec<u8>, String> {
    let Some((name, _)) = MAGICS.iter().find(|(_, magic)| packed.starts_with(magic)) else {
        return Err("unknown compression".to_owned());
    };
    match *name {
        "gzip" => read(GzDecoder::new(packed), limit),
        "xz" => read(XzReader::new_mem_limit(packed, false, MAX_XZ_KIB), limit),
        "zstd" => StreamingDecoder::new(packed).map_err(io::Error::other).and_then(|decoder| read(decoder, limit)),
        _ => Err(io::Error::other("not supported")),
    }
    .map_err(|e| format!("{name}: {e}"))
}

fn read(unpacked: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    unpacked.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("unpacks to more than {limit} bytes")));
    }
    Ok(bytes)
}

/// What Linux' build can produce; named here although not supported, so that an error can say which one it is.
const MAGICS: [(&str, &[u8]); 7] = [
    ("gzip", &[0x1f, 0x8b]),
    ("xz", &[0xfd, b'7', b'z', b'X', b'Z', 0]),
    ("zstd", &[0x28, 0xb5, 0x2f, 0xfd]),
    ("lz4", &[0x02, 0x21, 0x4c, 0x18]),
    ("lzo", &[0x89, b'L', b'Z', b'O']),
    ("bzip2", b"BZh"),
    ("lzma", &[0x5d, 0, 0]),
];
const MAX_XZ_KIB: u32 = 128 << 10;

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn each_supported_compression_is_recognised() {
        assert_eq!(unpack(&gzip(b"guest"), 5).unwrap(), b"guest");
        assert_eq!(unpack(&compress_to_vec(&b"guest"[..], CompressionLevel::Fastest), 5).unwrap(), b"guest");
        assert_eq!(unpack(&hex::decode(XZ_OF_GUEST).unwrap(), 5).unwrap(), b"guest");
    }

    #[test]
    fn an_unsupported_compression_is_named() {
        assert_eq!(unpack(&[0x02, 0x21, 0x4c, 0x18, 9], 5).unwrap_err(), "lz4: not supported");
        assert_eq!(unpack(b"plain", 5).unwrap_err(), "unknown compression");
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let zeros = vec![0; 4 << 20];
        for bomb in [gzip(&zeros), compress_to_vec(&zeros[..], CompressionLevel::Fastest)] {
            assert!(unpack(&bomb, 1 << 20).unwrap_err().contains("unpacks to more than"));
        }
    }

    proptest! {
        #[test]
        fn damage_never_makes_it_panic(which in 0..3usize, at in 0..40usize, to in any::<u8>()) {
            let good = [gzip(b"guest"), compress_to_vec(&b"guest"[..], CompressionLevel::Fastest), hex::decode(XZ_OF_GUEST).unwrap()];
            let mut packed = good[which].clone();
            if let Some(byte) = packed.get_mut(at) {
                *byte = to;
            }
            let _ = unpack(&packed, 64);
        }
    }

    /// `printf guest | xz --check=crc32`
    const XZ_OF_GUEST: &str = "fd377a585a0000016922de360200210116000000742fe5a3010004677565737400000000359ab7ac00011905bce8eccb9042990d010000000001595a";
}
