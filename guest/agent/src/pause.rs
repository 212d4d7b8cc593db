//! The pod's sandbox container: a process of the guest's own that holds the pod together and does nothing.
//!
//! Nothing of the host's asking runs in it: not its image, arguments, environment, user, mounts or capabilities.

use std::path::Path;

use nix::sys::signal::{SigSet, Signal};
use rustix::process::{WaitOptions, wait};
use serde_json::{Value, json};
use wire_ttrpc::agent::CreateContainerRequest;

/// The first argument of the sandbox container's process: where the binary sees it, it calls [`run_pause`].
pub const PAUSE_ARG: &str = "pause";

/// Waits for SIGTERM or SIGINT, and collects the processes that a shared process namespace leaves to its first one.
/// Returns the exit code.
///
/// Must be called while the process has one thread.
pub fn run_pause() -> u8 {
    let mut awaited = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        awaited.add(signal);
    }
    if awaited.thread_block().is_err() {
        return FAILED;
    }
    loop {
        match awaited.wait() {
            Ok(Signal::SIGCHLD) => while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {},
            Ok(_) => return 0,
            Err(_) => return FAILED,
        }
    }
}

/// Whether the request is for a pod's sandbox container, which then runs the guest's own process.
pub(crate) fn is_asked_for(request: &CreateContainerRequest) -> bool {
    request.OCI.Annotations.get(CONTAINER_TYPE).is_some_and(|kind| kind == "pod_sandbox")
}

/// The process of the sandbox container's `config.json`, whose rights are none.
pub(crate) fn process() -> Value {
    json!({
        "terminal": false,
        "user": {"uid": NOBODY, "gid": NOBODY},
        "args": [PROGRAM, PAUSE_ARG],
        "env": ["PATH=/"],
        "cwd": "/",
        "capabilities": {"bounding": [], "effective": [], "permitted": [], "inheritable": [], "ambient": []},
        "noNewPrivileges": true,
    })
}

/// The mount of `program`, the guest's own binary, that the process runs.
pub(crate) fn program_mount(program: &Path) -> Value {
    json!({"destination": PROGRAM, "type": "bind", "source": program, "options": ["bind", "ro", "nosuid", "nodev"]})
}

/// What Kata's shim calls the kind of a container.
const CONTAINER_TYPE: &str = "io.katacontainers.pkg.oci.container_type";
const PROGRAM: &str = "/pause";
/// As the image of Kubernetes' own pause container has it.
const NOBODY: u32 = 65535;
const FAILED: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::MessageField;
    use wire_ttrpc::oci;

    #[test]
    fn only_the_shim_s_annotation_makes_a_sandbox_container() {
        let request = |kind: &str| {
            let mut spec = oci::Spec::new();
            spec.Annotations.insert(CONTAINER_TYPE.to_owned(), kind.to_owned());
            CreateContainerRequest { OCI: MessageField::some(spec), ..Default::default() }
        };
        assert!(is_asked_for(&request("pod_sandbox")));
        for other in ["pod_container", "single_container", "", "POD_SANDBOX"] {
            assert!(!is_asked_for(&request(other)), "{other:?}");
        }
        assert!(!is_asked_for(&CreateContainerRequest::new()));
    }
}
