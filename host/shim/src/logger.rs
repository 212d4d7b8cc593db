//! Loggers that are programs: `binary://` and a path, as containerd's clients name them.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use crate::io::Output;

/// Starts the program that `uri` names after its scheme, and returns when it is ready for both streams.
pub(crate) async fn start(uri: &str, container: &str, namespace: &str) -> io::Result<[Output; 2]> {
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let mut command = Command::new(path);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        command.arg(&*name);
        if !value.is_empty() {
            command.arg(&*value);
        }
    }
    command.env("CONTAINER_ID", container).env("CONTAINER_NAMESPACE", namespace);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());

    let (stdout, logged_stdout) = pipe::pipe()?;
    let (stderr, logged_stderr) = pipe::pipe()?;
    let (readies, mut ready) = pipe::pipe()?;
    let mapping = |parent_fd: OwnedFd, child_fd| FdMapping { parent_fd, child_fd };
    let mappings = vec![
        mapping(logged_stdout.into_blocking_fd()?, 3),
        mapping(logged_stderr.into_blocking_fd()?, 4),
        mapping(readies.into_blocking_fd()?, 5),
    ];
    command.fd_mappings(mappings).map_err(io::Error::other)?;
    let mut logger = tokio::process::Command::from(command).spawn()?;

    // Ready is whoever writes to the third pipe or closes it.
    if !matches!(timeout(READY, ready.read(&mut [0])).await, Ok(Ok(_))) {
        let _ = logger.start_kill();
        return Err(io::Error::new(io::ErrorKind::TimedOut, "the logger did not say that it is ready"));
    }
    tokio::spawn(async move { logger.wait().await });
    Ok([Box::new(stdout), Box::new(stderr)])
}

/// What containerd's own shim gives a logger.
const READY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test]
    async fn a_logger_gets_both_streams_and_its_arguments() {
        let folder = tempfile::tempdir().unwrap();
        let (script, log) = (folder.path().join("logger"), folder.path().join("log"));
        let text = "#!/bin/sh\nexec 5>&-\necho \"$CONTAINER_ID $CONTAINER_NAMESPACE $1\" >$2\ncat <&3 >>$2\ncat <&4 >>$2\necho end >>$2\n";
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();

        let uri = format!("{}?flag=&{}", script.display(), log.display());
        let [mut stdout, mut stderr] = start(&uri, "c", "k8s.io").await.unwrap();
        stdout.write_all(b"out\n").await.unwrap();
        stderr.write_all(b"err\n").await.unwrap();
        drop((stdout, stderr));

        let expected = "c k8s.io flag\nout\nerr\nend\n";
        let written = async {
            while std::fs::read_to_string(&log).unwrap_or_default() != expected {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(20), written).await.expect("the logger wrote something else");
    }

    #[tokio::test]
    async fn a_logger_that_is_none_is_an_error() {
        assert!(start("/nonexistent", "c", "n").await.is_err());
    }
}
