//! A token of SoftHSM for one test, in a process of its own since SoftHSM finds its token by a variable.

use std::path::Path;
use std::process::Command;

/// Runs a test, named by its path in the test binary, with a fresh token that holds an RSA key pair.
///
/// The first call runs the same test again in a child process; there the second one does the work.
pub fn with_token(test: &str, work: impl FnOnce(&Path)) {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return work(Path::new(&directory));
    }
    let directory = tempfile::tempdir().unwrap();
    let configuration = directory.path().join("softhsm2.conf");
    std::fs::create_dir(directory.path().join("tokens")).unwrap();
    let text = format!("directories.tokendir = {}\nlog.level = ERROR\n", directory.path().join("tokens").display());
    std::fs::write(&configuration, text).unwrap();

    let run = |command: &mut Command| {
        let output = command.env("SOFTHSM2_CONF", &configuration).env(DIRECTORY, directory.path()).output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
    };
    let init = ["--init-token", "--free", "--label", LABEL, "--pin", PIN, "--so-pin", "87654321"];
    run(Command::new("softhsm2-util").args(init));
    let pair = ["--keypairgen", "--key-type", "rsa:2048", "--label", KEY];
    run(Command::new("pkcs11-tool").arg("--module").arg(MODULE).args(["--login", "--pin", PIN]).args(pair));
    run(Command::new(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]));
}

const DIRECTORY: &str = "COCOON_TEST_TOKEN";
pub const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
pub const LABEL: &str = "trustee";
pub const PIN: &str = "12345678";
pub const KEY: &str = "wrapping";
