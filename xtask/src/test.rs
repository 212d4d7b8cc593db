//! Everything that CI runs: formatting, lints, all tests, and a line that counts them.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use crate::{Error, build, cargo, packages, step};

/// Runs everything; `full` with the slow cases.
pub fn run(full: bool) -> Result<(), Error> {
    packages::install()?;
    step("checking the formatting");
    crate::run(&mut cargo(&["fmt", "--all", "--check"]))?;
    step("linting");
    crate::run(&mut cargo(&[
        "clippy",
        "--release",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))?;
    build::programs()?;
    build::guest_image()?;
    build::volume_guest()?;

    step("running all tests");
    let mut counted = Counts::default();
    let everything = [
        "test",
        "--release",
        "--workspace",
        "--no-fail-fast",
        "--exclude",
        "agent",
        "--exclude",
        "guest-image",
        "--exclude",
        "volume-guest",
    ];
    let most = counted.run(&everything, full)?;
    // Their test programs run where no libraries are, as guestd does.
    let of_the_guest = [&["test", "--release", "--no-fail-fast"][..], &build::STATIC].concat();
    let guests = counted.run(&of_the_guest, full)?;
    println!("{} passed, {} failed", counted.passed, counted.failed);
    if most && guests && counted.failed == 0 && counted.passed > 0 {
        Ok(())
    } else {
        Err(Error("some tests failed".to_owned()))
    }
}

#[derive(Debug, Default, PartialEq)]
struct Counts {
    passed: u32,
    failed: u32,
}

impl Counts {
    /// Runs tests, shows what they say and counts; false if cargo failed.
    fn run(&mut self, arguments: &[&str], full: bool) -> Result<bool, Error> {
        let mut command = cargo(arguments);
        if full {
            command.env("COCOON_TEST_FULL", "1");
        }
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Error(format!("cargo test can't be started: {error}")))?;
        let output = child.stdout.take().into_iter().flat_map(|output| BufReader::new(output).lines());
        for line in output.map_while(Result::ok) {
            println!("{line}");
            self.add(&line);
        }
        let status = child.wait().map_err(|error| Error(format!("cargo test can't be waited for: {error}")))?;
        Ok(status.success())
    }

    /// Adds what one test program says at its end.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let count = |word: &str| {
            let words: Vec<&str> = result.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
            let at = words.iter().position(|found| *found == word)?;
            words.get(at.checked_sub(1)?)?.parse::<u32>().ok()
        };
        self.passed += count("passed").unwrap_or(0);
        self.failed += count("failed").unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up() {
        let mut counts = Counts::default();
        counts.add("test result: ok. 35 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.12s");
        counts.add("test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s");
        counts.add("running 3 tests");
        assert_eq!(counts, Counts { passed: 37, failed: 1 });
    }
}
