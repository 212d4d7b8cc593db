//! The initdata disk, which an untrusted host writes, and the document on it, which Trustee reads from anybody.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::initdata::InitData;

fuzz_target!(|disk: &[u8]| {
    if let Ok(initdata) = InitData::from_disk(disk) {
        assert!(!initdata.digest().is_empty());
    }
    if let Ok(text) = std::str::from_utf8(disk) {
        let _ = InitData::parse(text.to_owned());
    }
});
