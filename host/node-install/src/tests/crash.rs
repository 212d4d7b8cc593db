//! Operations killed at every step, by processes that really die, and what the next operation makes of it.

use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::ground::{Ground, NODES, release};
use crate::{Node, Release};

#[test]
fn an_installation_that_is_killed_anywhere_is_taken_back_or_done_again() {
    for (suite, configuration) in NODES {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("release");
        let release = release(&from, "one");
        let Some(ground) = Ground::new(&folder.path().join("whole"), suite, Some(configuration)) else { return };
        let untouched = ground.content();
        ground.node().install(&release).unwrap();
        let installed = ground.content();

        let mut killed = 0;
        loop {
            let place = folder.path().join(format!("killed-{killed}"));
            let ground = Ground::new(&place, suite, Some(configuration)).unwrap();
            if die(&["install", place.to_str().unwrap(), from.to_str().unwrap()], killed).success() {
                break;
            }
            ground.expect_whole();
            ground.dump();
            // Every other time somebody gives up, and else somebody tries again.
            match killed % 2 {
                0 => {
                    ground.node().uninstall().unwrap();
                    assert_eq!(ground.content(), untouched, "after {killed} steps");
                }
                _ => {
                    ground.node().install(&release).unwrap();
                    assert_eq!(ground.content(), installed, "after {killed} steps");
                }
            }
            killed += 1;
        }
        assert!(killed > 20, "it died {killed} times");
    }
}

#[test]
fn an_upgrade_and_a_removal_that_are_killed_anywhere_leave_a_version_that_is_whole() {
    let (suite, configuration) = NODES[1];
    let folder = tempfile::tempdir().unwrap();
    let (old_place, new_place) = (folder.path().join("old"), folder.path().join("new"));
    let (old, new) = (release(&old_place, "one"), release(&new_place, "two"));
    let Some(ground) = Ground::new(&folder.path().join("whole"), suite, Some(configuration)) else { return };
    let untouched = ground.content();
    ground.node().install(&old).unwrap();
    ground.node().install(&new).unwrap();
    let upgraded = ground.content();

    for operation in ["install", "uninstall"] {
        let mut killed = 0;
        loop {
            let place = folder.path().join(format!("{operation}-{killed}"));
            let ground = Ground::new(&place, suite, Some(configuration)).unwrap();
            ground.node().install(&old).unwrap();
            if die(&[operation, place.to_str().unwrap(), new_place.to_str().unwrap()], killed).success() {
                break;
            }
            ground.expect_whole();
            ground.dump();
            let status = ground.node().status().unwrap();
            let goes_on = ground.node().install(&new);
            if operation == "uninstall" {
                // Whether it was taken back or was done, what follows is an installation like any other.
                goes_on.unwrap();
                ground.node().uninstall().unwrap();
                assert_eq!(ground.content(), untouched, "after {killed} steps");
            } else {
                assert_eq!(goes_on.unwrap().taken_back, status.interrupted);
                assert_eq!(ground.content(), upgraded, "after {killed} steps");
            }
            killed += 1;
        }
        assert!(killed > 5, "it died {killed} times");
    }
}

/// Runs an operation in a process that dies at this step, counted from 0.
fn die(words: &[&str], at: usize) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "tests::crash::victim", "--ignored", "--quiet"]);
    command.env(OPERATION, words.join("\n")).env(DIE_AT, at.to_string());
    command.output().unwrap().status
}

#[test]
#[ignore = "the process that the others kill"]
fn victim() {
    let Ok(words) = std::env::var(OPERATION) else { return };
    let words: Vec<&str> = words.split('\n').collect();
    let node = Node::at(words[1]);
    match words[0] {
        "install" => node.install(&Release::open(words[2].as_ref()).unwrap()).unwrap(),
        _ => node.uninstall().unwrap(),
    };
}

/// Dies if this is the step to die at.
pub(crate) fn step() {
    static PASSED: AtomicUsize = AtomicUsize::new(0);
    let Ok(at) = std::env::var(DIE_AT) else { return };
    if PASSED.fetch_add(1, Ordering::Relaxed).to_string() == at {
        std::process::abort();
    }
}

const OPERATION: &str = "COCOON_TEST_OPERATION";
const DIE_AT: &str = "COCOON_TEST_DIE_AT";
