//! The initdata disk, which an untrusted host writes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::initdata::InitData;

fuzz_target!(|disk: &[u8]| {
    if let Ok(initdata) = InitData::from_disk(disk) {
        assert!(!initdata.digest().is_empty());
    }
});
