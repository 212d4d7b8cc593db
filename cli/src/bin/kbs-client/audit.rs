//! `kbs-client audit verify`: whether an audit log is whole.
//!
//! Each line is a JSON object with `seq`, counted from 0, and `prev`, the SHA-256 of the line before in hexadecimal
//! (64 zeros in the first). Lines cut off at the end can't be noticed from the file alone: keep the printed hash of
//! the last line somewhere else, and compare.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::Outcome;

/// What to do with an audit log.
#[derive(Subcommand)]
pub enum Command {
    /// Check that no line was changed, added or taken out.
    Verify {
        /// The log's file.
        file: PathBuf,
    },
}

/// Checks the chain and prints the number of lines and the hash of the last.
pub fn verify(path: &Path) -> Outcome {
    let file = File::open(path).and_then(|file| match file.metadata()?.is_dir() {
        true => Err(std::io::ErrorKind::IsADirectory.into()),
        false => Ok(file),
    });
    let file = file.map_err(|e| format!("audit log {} can't be read: {e}; next: check the path", path.display()))?;
    let chain = check(BufReader::new(file)).map_err(|reason| {
        format!(
            "audit log {}: {reason}; next: keep the file as evidence, and trust no line from there on",
            path.display()
        )
    })?;
    println!("{} lines, unbroken; hash of the last line {}", chain.lines, chain.last);
    Ok(())
}

struct Chain {
    lines: u64,
    last: String,
}

#[derive(Deserialize)]
struct Line {
    seq: u64,
    prev: String,
}

fn check(mut log: impl std::io::BufRead) -> Result<Chain, String> {
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
        check(text.as_bytes()).map(|chain| chain.lines)
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
        assert!(check(whole[0].as_bytes()).is_err());
        assert!(check(b"nonsense\n".as_slice()).is_err());
    }
}
