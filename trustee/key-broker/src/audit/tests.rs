//! The audit log under restarts, forgeries, floods and full disks.

use super::*;
use std::net::Ipv4Addr;

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn refusal(reference: &str) -> Event {
    let claims = vec![Difference::new("/a", Value::from("x".repeat(9_000)), Value::Null)];
    let (reference, stage, cause) = (reference.to_owned(), "resource policy".to_owned(), "denied".to_owned());
    let record = RefusalRecord { reference, stage, session: None, resource: None, token: None, cause, claims };
    Event::Refusal(record.shortened())
}

fn release() -> Event {
    Event::Release { resource: "a/b/c".to_owned(), token: "t".to_owned() }
}

fn log(directory: &tempfile::TempDir) -> Result<AuditLog, Error> {
    AuditLog::open(directory.path().join("audit.jsonl"), Clock::system())
}

#[test]
fn lines_are_chained_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let first = log(&directory).unwrap();
    first.record(PEER, release()).unwrap();
    first.record(PEER, refusal("0001")).unwrap();
    assert!(matches!(log(&directory), Err(Error::Busy(_))));
    drop(first);
    let second = log(&directory).unwrap();
    second.record(PEER, refusal("0002")).unwrap();

    let text = std::fs::read_to_string(directory.path().join("audit.jsonl")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3);
    for (previous, line) in lines.iter().zip(&lines[1..]) {
        let line: Line = serde_json::from_str(line).unwrap();
        assert_eq!(line.previous, hash(previous.as_bytes()));
    }
    assert_eq!(second.lines(1, 1).unwrap(), format!("{}\n", lines[1]).into_bytes());
    assert_eq!(second.lines(1, 9).unwrap(), format!("{}\n{}\n", lines[1], lines[2]).into_bytes());
}

#[test]
fn of_a_long_log_the_end_is_checked_and_continued() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let first = log(&directory).unwrap();
    while first.state.lock().unwrap().length < TAIL + (1 << 20) {
        first.record(PEER, refusal("0001")).unwrap();
    }
    let (sequence, previous) = {
        let state = first.state.lock().unwrap();
        (state.sequence, state.previous.clone())
    };
    drop(first);
    let second = log(&directory).unwrap();
    {
        let state = second.state.lock().unwrap();
        assert_eq!((state.sequence, state.previous.as_str()), (sequence, previous.as_str()));
        assert_eq!(state.length, std::fs::metadata(&path).unwrap().len());
    }
    drop(second);

    let mut text = std::fs::read(&path).unwrap();
    let at = text.len() - 10_000;
    text[at] ^= 1;
    std::fs::write(&path, text).unwrap();
    assert!(matches!(log(&directory), Err(Error::Broken { .. })));
}

#[test]
fn a_flood_of_refusals_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let seconds = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(6_000));
    let log = AuditLog::open(directory.path().join("audit.jsonl"), Clock::set_by(seconds.clone())).unwrap();
    let written = (0..MAX_REFUSALS + 50).filter(|_| log.record_refusal(PEER, refusal("1")).unwrap()).count();
    assert_eq!(written, MAX_REFUSALS as usize);

    seconds.fetch_add(60, std::sync::atomic::Ordering::Relaxed);
    log.record(PEER, release()).unwrap();
    let end = log.lines(u64::from(MAX_REFUSALS), 9).unwrap();
    let end: Vec<Line> = end.split_inclusive(|&b| b == b'\n').map(|l| serde_json::from_slice(l).unwrap()).collect();
    assert!(matches!(end[0].event, Event::Suppressed { refusals: 50 }));
    assert!(matches!(end[1].event, Event::Release { .. }));
    assert!(log.record_refusal(PEER, refusal("1")).unwrap());
}

#[test]
fn a_changed_or_missing_line_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let log_of_three = log(&directory).unwrap();
    for _ in 0..3 {
        log_of_three.record(PEER, release()).unwrap();
    }
    drop(log_of_three);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for (changed, broken) in [
        (text.replacen("a/b/c", "a/b/x", 1), 2),
        (format!("{}\n{}\n", lines[0], lines[2]), 2),
        (format!("{}\n{}\n", lines[1], lines[2]), 1),
        (format!("{}\n\n{}\n", lines[0], lines[1]), 2),
    ] {
        std::fs::write(&path, changed).unwrap();
        assert!(matches!(log(&directory), Err(Error::Broken { line, .. }) if line == broken));
    }
}

#[test]
fn nothing_that_a_guest_sends_makes_a_line_that_a_restart_would_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let first = log(&directory).unwrap();
    let long = "\u{1}".repeat(2 << 20);
    let claims = vec![
        Difference {
            reference_value: Some(long.clone()),
            ..Difference::new(long.clone(), Value::from(long.clone()), Value::from(long.clone()))
        };
        99
    ];
    let (reference, stage) = ("0001".to_owned(), "attestation".to_owned());
    let record = RefusalRecord { reference, stage, session: None, resource: None, token: None, cause: long, claims };
    first.record(PEER, Event::Refusal(record.shortened())).unwrap();
    first.record(PEER, release()).unwrap();
    drop(first);

    assert!(log(&directory).is_ok());
    let text = std::fs::read_to_string(directory.path().join("audit.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 2);
    assert!((text.len() as u64) < MAX_LINE);
}

#[test]
fn a_line_that_is_too_long_is_no_reason_to_cut_off_what_follows() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let mut text = vec![b' '; MAX_LINE as usize + 9];
    text.extend_from_slice(b"\nmore\n");
    std::fs::write(&path, &text).unwrap();
    assert!(matches!(log(&directory), Err(Error::Broken { line: 1, .. })));
    assert_eq!(std::fs::read(&path).unwrap(), text);
}

#[test]
fn a_part_of_a_line_that_could_not_be_taken_back_is_cut_off_before_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let first = log(&directory).unwrap();
    first.record(PEER, release()).unwrap();
    {
        let mut state = first.state.lock().unwrap();
        state.file.write_all(b"{\"seq\":1,").unwrap();
        state.torn = true;
    }
    first.record(PEER, release()).unwrap();
    drop(first);
    assert!(log(&directory).is_ok());
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
}

#[test]
fn lines_of_many_threads_make_one_chain() {
    let directory = tempfile::tempdir().unwrap();
    let first = log(&directory).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..50).for_each(|_| first.record(PEER, refusal("0001")).unwrap()));
        }
    });
    drop(first);
    let text = std::fs::read_to_string(directory.path().join("audit.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 400);
    assert!(log(&directory).is_ok());
}

#[test]
fn an_unfinished_line_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    log(&directory).unwrap().record(PEER, release()).unwrap();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, [whole.as_slice(), b"{\"seq\":1,"].concat()).unwrap();

    log(&directory).unwrap().record(PEER, release()).unwrap();
    assert!(std::fs::read(&path).unwrap().starts_with(&whole));
    assert!(log(&directory).is_ok());
}
