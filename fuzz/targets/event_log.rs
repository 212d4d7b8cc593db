//! Event logs: the firmware's, the agent's, and the two in one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::event_log::{Event, Records, cc_event_log, entries};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(found) = entries(bytes) {
        let again: Vec<u8> = found.iter().flat_map(|entry| entry.encode()).collect();
        assert_eq!(again, bytes);
    }
    if let Ok(records) = Records::open(bytes) {
        assert!(records.count() <= bytes.len());
    }
    let _ = Event::from_tagged(bytes);
    let (ccel, aael) = bytes.split_at(bytes.len() / 2);
    let _ = cc_event_log(Some(ccel), Some(aael));
});
