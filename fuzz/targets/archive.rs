//! An image layer's tar stream, as the guest reads it before anything of it is verified.
//!
//! The reader is compiled from its sources, so that the crate `image` need not make it public.
#![no_main]
#![allow(dead_code, unreachable_pub)]

#[path = "../../guest/image/src/archive.rs"]
mod archive;
#[path = "../../guest/image/src/header.rs"]
mod header;
#[path = "../../guest/image/src/pax.rs"]
mod pax;
#[path = "../../guest/image/src/sparse.rs"]
mod sparse;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = pax::Records::parse(bytes);
    let _ = header::number(bytes);

    // A header's checksum is corrected, or hardly any input would come past it.
    let mut stream = bytes.to_vec();
    for block in stream.chunks_exact_mut(BLOCK) {
        if block[CHECKSUM] == b'?' {
            block[CHECKSUM..CHECKSUM + 8].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[CHECKSUM..CHECKSUM + 7].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
    for stream in [bytes, &stream] {
        let mut archive = archive::Archive::new(stream);
        let mut buffer = [0; 300];
        let mut read = 0;
        while let Ok(Some(entry)) = archive.next() {
            assert!(entry.path.len() + entry.link.len() <= 2 * stream.len().max(BLOCK));
            while let Ok(length @ 1..) = archive.read(&mut buffer) {
                read += length;
            }
        }
        assert!(read <= stream.len());
    }
});

const BLOCK: usize = 512;
/// Where a header has it.
const CHECKSUM: usize = 148;
