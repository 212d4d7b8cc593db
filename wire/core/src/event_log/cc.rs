//! The event log that goes with evidence: the firmware's records, the agent's, and the mark of the end.

use super::record::{EV_NO_ACTION, Records, SHA1, SIGNATURE};
use crate::evidence::RegisterAlgorithm;

/// The log of a guest for its evidence, or none if neither firmware nor agent has one.
///
/// `ccel` is the ACPI table's data, which is much longer than the log in it: only its real records are taken, up to
/// the first that is damaged. Without a usable one a header stands in its place, which names SHA-384 and SM3. `aael` is
/// the agent's log. Eight bytes of 0xFF end the whole.
pub fn cc_event_log(ccel: Option<&[u8]>, aael: Option<&[u8]>) -> Option<Vec<u8>> {
    let firmware = ccel.and_then(firmware_log);
    if firmware.is_none() && aael.is_none() {
        return None;
    }
    let mut log = firmware.map_or_else(header, <[u8]>::to_vec);
    log.extend(aael.unwrap_or_default());
    log.extend(END);
    Some(log)
}

/// The part of the table that holds records.
fn firmware_log(ccel: &[u8]) -> Option<&[u8]> {
    let mut records = Records::open(ccel).ok()?;
    while let Some(Ok(_)) = records.next() {}
    Some(&ccel[..records.offset()])
}

/// A specification id event without a firmware behind it: 69 bytes.
fn header() -> Vec<u8> {
    let mut event = SIGNATURE.to_vec();
    event.extend(0_u32.to_le_bytes()); // platform class: client
    event.extend([0, 2, 0, 2]); // version 2.0, errata 0, a UINTN of 8 bytes
    let banks = [RegisterAlgorithm::Sha384, RegisterAlgorithm::Sm3];
    event.extend((banks.len() as u32).to_le_bytes());
    for algorithm in banks {
        event.extend(algorithm.tcg_id().to_le_bytes());
        event.extend((algorithm.size() as u16).to_le_bytes());
    }
    event.push(0); // no vendor information

    let mut header = 1_u32.to_le_bytes().to_vec();
    header.extend(EV_NO_ACTION.to_le_bytes());
    header.extend([0; SHA1]);
    header.extend((event.len() as u32).to_le_bytes());
    header.extend(event);
    header
}

const END: [u8; 8] = [0xff; 8];

#[cfg(test)]
mod tests {
    use super::super::{Entry, Error, Event, Record};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_header_is_69_bytes_and_names_its_banks() {
        assert_eq!(header().len(), 69);
        let entry = entry(RegisterAlgorithm::Sm3);
        let log = cc_event_log(None, Some(&entry)).unwrap();
        let mut records = Records::open(&log).unwrap();
        let record = records.next().unwrap().unwrap();
        assert_eq!(record.encode(), entry);
        assert!(records.next().is_none());
        assert_eq!(log[records.offset()..], END);
        // SHA-256 is not among them.
        let log = cc_event_log(None, Some(&self::entry(RegisterAlgorithm::Sha256))).unwrap();
        assert_eq!(Records::open(&log).unwrap().next(), Some(Err(Error::Damaged(69))));
    }

    #[test]
    fn the_firmwares_log_is_cut_at_its_real_end() {
        let record = Record { register: 1, kind: 4, digests: vec![(0x0c, &[7; 48])], data: b"firmware" }.encode();
        let real = [header(), record].concat();
        for padding in [0x00, 0xff] {
            let table = [real.clone(), vec![padding; 4096]].concat();
            let aael = entry(RegisterAlgorithm::Sha384);
            assert_eq!(cc_event_log(Some(&table), Some(&aael)).unwrap(), [&real[..], &aael, &END].concat());
        }
        let torn = [real.clone(), vec![1, 0, 0, 0, 4, 0, 0, 0, 1]].concat();
        assert_eq!(cc_event_log(Some(&torn), None).unwrap(), [&real[..], &END].concat());
    }

    #[test]
    fn without_any_log_there_is_none() {
        assert_eq!(cc_event_log(None, None), None);
        assert_eq!(cc_event_log(Some(b"not a log"), None), None);
        assert_eq!(cc_event_log(Some(b"not a log"), Some(b"")).unwrap(), [header(), END.to_vec()].concat());
    }

    #[test]
    fn real_tables_of_firmwares_are_read_to_their_end() {
        for (name, end, count) in [("csv", 9565, 82), ("grub", 15130, 37), ("ovmf", 2120, 20)] {
            let path = format!("../../../shared/vectors/eventlog/CCEL_data_{name}");
            let Ok(table) = std::fs::read(&path) else {
                println!("skipped: {path} is not there");
                continue;
            };
            let mut records = Records::open(&table).unwrap();
            assert_eq!(records.by_ref().map(Result::unwrap).count(), count, "{name}");
            assert_eq!(records.offset(), end, "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_table_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), tail in 0_usize..69) {
            let _ = cc_event_log(Some(&bytes), None);
            let _ = cc_event_log(Some(&[&header()[..tail], &bytes[..]].concat()), None);
            let _ = cc_event_log(Some(&[header(), bytes].concat()), None);
        }
    }

    fn entry(algorithm: RegisterAlgorithm) -> Vec<u8> {
        Entry { register: 4, algorithm, event: Event::new("a", "b", "c").unwrap() }.encode()
    }
}
