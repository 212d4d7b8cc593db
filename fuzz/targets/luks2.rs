//! A volume's header and its integrity superblock, as whoever holds the disk wrote them.
#![no_main]

use aws_lc_rs::digest::{SHA256, digest};
use libfuzzer_sys::fuzz_target;
use wire::luks2::{Header, IntegritySuperblock};

fuzz_target!(|bytes: &[u8]| {
    let mut header = bytes.to_vec();
    // Nothing else gets past the checksum of each copy.
    for start in [0, bytes.len() / 2] {
        if let Some(copy) = header.get_mut(start..start + bytes.len() / 2)
            && copy.len() >= CHECKSUM.end
        {
            copy[CHECKSUM].fill(0);
            let checksum = digest(&SHA256, copy);
            copy[CHECKSUM][..32].copy_from_slice(checksum.as_ref());
        }
    }
    if let Ok(header) = Header::parse(&header, DEVICE) {
        let _ = header.key_area();
        let _ = IntegritySuperblock::parse(bytes, header.segment());
    }
});

const CHECKSUM: std::ops::Range<usize> = 448..512;
const DEVICE: u64 = 64 << 20;
