//! `kbs-client audit`: whether audit logs are whole, and the lines of a Trustee's own.
//!
//! Each line is a JSON object with `seq`, counted from 0, and `prev`, the SHA-256 of the line before in hexadecimal
//! (64 zeros in the first). Lines cut off at the end can't be noticed from the file alone: keep the printed hash of
//! the last line somewhere else, and compare.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::Outcome;
use cli::trustee::Trustee;

/// What to do with an audit log.
#[derive(Subcommand)]
pub enum Command {
    /// Check that no line was changed, added or taken out.
    Verify {
        /// The log's file; several of replicas are also searched for attestations that were sent to more than one.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Print lines of the Trustee's log.
    Fetch {
        /// The sequence number to begin with.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// How many lines at most.
        #[arg(long, default_value_t = 1_000)]
        limit: u64,
        /// File with the administrator's token. Default: ~/.trustee/admin-token if it is there.
        #[arg(long)]
        admin_token_file: Option<PathBuf>,
    },
}

/// Checks the chain of each log, prints the number of lines and the hash of the last, and names the attestations that
/// were sent more than once, be it to different replicas.
pub fn verify(paths: &[PathBuf], as_json: bool) -> Outcome {
    let mut sessions = BTreeMap::<String, u32>::new();
    let mut logs = Vec::new();
    for path in paths {
        let chain = check_file(path, &mut sessions)?;
        let Chain { lines, last } = &chain;
        if !as_json {
            println!("{}: {lines} lines, unbroken; hash of the last line {last}", path.display());
        }
        logs.push(json!({ "file": path, "lines": lines, "last": last }));
    }
    sessions.retain(|_, times| *times > 1);
    if as_json {
        println!("{}", json!({ "logs": logs, "replayed_sessions": sessions }));
    } else {
        for (session, times) in sessions {
            println!("session {session}: its attestation was answered {times} times");
        }
    }
    Ok(())
}

/// Prints lines of the Trustee's log.
pub async fn fetch(trustee: &Trustee, from: u64, limit: u64) -> Outcome {
    let lines = trustee.get(&format!("audit?from={from}&limit={limit}")).await?;
    print!("{}", String::from_utf8_lossy(&lines));
    Ok(())
}

fn check_file(path: &Path, sessions: &mut BTreeMap<String, u32>) -> Result<Chain, String> {
    let file = File::open(path).and_then(|file| match file.metadata()?.is_dir() {
        true => Err(std::io::ErrorKind::IsADirectory.into()),
        false => Ok(file),
    });
    let file = file.map_err(|e| format!("audit log {} can't be read: {e}; next: check the path", path.display()))?;
    check(BufReader::new(file), sessions).map_err(|reason| {
        format!(
            "audit log {}: {reason}; next: keep the file as evidence, and trust no line from there on",
            path.display()
        )
    })
}

struct Chain {
    lines: u64,
    last: String,
}

#[derive(Deserialize)]
struct Line {
    seq: u64,
    prev: String,
    event: String,
    session: Option<String>,
}

fn check(mut log: impl std::io::BufRead, sessions: &mut BTreeMap<String, u32>) -> Result<Chain, String> {
    let mut chain = Chain { lines: 0, last: "0".repeat(64) };
    let mut text = Vec::new();
    loop {
        text.clear();
        let number = chain.lines + 1;
        // A line of the log has at most some 100 KiB.
        let length = std::io::Read::take(&mut log, MAX_LINE).read_until(b'\n', &mut text);
        if length.map_err(|e| format!("line {number} can't be read: {e}"))? == 0 {
            return Ok(chain);
        }
        if text.pop() != Some(b'\n') {
            return Err(format!("line {number} is not finished"));
        }
        let line: Line = serde_json::from_slice(&text).map_err(|_| format!("line {number} is no line of a log"))?;
        if line.seq != chain.lines || line.prev != chain.last {
            return Err(format!("line {number} does not continue the line before it"));
        }
        if let (Some(session), "attestation") = (line.session, line.event.as_str()) {
            *sessions.entry(session).or_default() += 1;
        }
        chain = Chain { lines: number, last: hex::encode(Sha256::digest(&text)) };
    }
}

const MAX_LINE: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: u64) -> Vec<String> {
        let mut log: Vec<String> = Vec::new();
        for seq in 0..lines {
            let prev = log.last().map_or("0".repeat(64), |line| hex::encode(Sha256::digest(line)));
            log.push(format!("{{\"seq\":{seq},\"prev\":\"{prev}\",\"event\":\"release\"}}"));
        }
        log
    }

    fn check_lines(lines: &[String]) -> Result<u64, String> {
        let text: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
        check(text.as_bytes(), &mut BTreeMap::new()).map(|chain| chain.lines)
    }

    #[test]
    fn a_session_that_attested_twice_is_counted_over_all_logs() {
        let zeros = "0".repeat(64);
        let line = format!("{{\"seq\":0,\"prev\":\"{zeros}\",\"event\":\"attestation\",\"session\":\"5e55\"}}\n");
        let mut sessions = BTreeMap::new();
        check(line.as_bytes(), &mut sessions).unwrap();
        check(line.as_bytes(), &mut sessions).unwrap();
        assert_eq!(sessions, BTreeMap::from([("5e55".to_owned(), 2)]));
    }

    #[test]
    fn any_change_breaks_the_chain() {
        let whole = log(4);
        assert_eq!(check_lines(&whole), Ok(4));
        assert_eq!(check_lines(&[]), Ok(0));

        let mut changed = whole.clone();
        changed[1] = changed[1].replace("release", "refusal");
        assert!(check_lines(&changed).unwrap_err().starts_with("line 3 "));
        let mut missing = whole.clone();
        missing.remove(2);
        assert!(check_lines(&missing).unwrap_err().starts_with("line 3 "));
        let mut swapped = whole.clone();
        swapped.swap(0, 1);
        assert!(check_lines(&swapped).unwrap_err().starts_with("line 1 "));
        assert!(check(whole[0].as_bytes(), &mut BTreeMap::new()).is_err());
        assert!(check(b"nonsense\n".as_slice(), &mut BTreeMap::new()).is_err());
    }
}
