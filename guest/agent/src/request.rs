//! What a policy gets to see of each request: the name of its rule and its input.

use serde_json::{Value, json};
use wire_ttrpc::agent::*;

/// A request that the policy has to allow before anything is done for it.
pub(crate) trait Gated: serde::Serialize {
    /// The name of the request's type, which is also the name of its rule.
    const NAME: &'static str;

    /// Bytes that the request carries besides its members, which each cost dozens of bytes as input.
    fn payload(&self) -> usize {
        0
    }

    /// The request in JSON, in the form that Kata's policies are written against.
    fn input(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }
}

macro_rules! gated {
    ($($request:ident),* $(,)?) => {
        $(impl Gated for $request {
            const NAME: &'static str = stringify!($request);
        })*
    };
    ($($request:ident with $payload:ident),* $(,)?) => {
        $(impl Gated for $request {
            const NAME: &'static str = stringify!($request);

            fn payload(&self) -> usize {
                self.$payload.len()
            }
        })*
    };
}

gated!(
    AddARPNeighborsRequest,
    AddSwapPathRequest,
    AddSwapRequest,
    CloseStdinRequest,
    CreateContainerRequest,
    CreateSandboxRequest,
    DestroySandboxRequest,
    ExecProcessRequest,
    GetDiagnosticDataRequest,
    GetIPTablesRequest,
    GetMetricsRequest,
    GetOOMEventRequest,
    GuestDetailsRequest,
    ListInterfacesRequest,
    ListRoutesRequest,
    MemAgentCompactConfig,
    MemAgentMemcgConfig,
    MemHotplugByProbeRequest,
    OnlineCPUMemRequest,
    PauseContainerRequest,
    ReadStreamRequest,
    RemoveContainerRequest,
    RemoveStaleVirtiofsShareMountsRequest,
    ResizeVolumeRequest,
    ResumeContainerRequest,
    SetGuestDateTimeRequest,
    SetPolicyRequest,
    SignalProcessRequest,
    StartContainerRequest,
    StatsContainerRequest,
    TtyWinResizeRequest,
    UpdateContainerRequest,
    UpdateEphemeralMountsRequest,
    UpdateInterfaceRequest,
    UpdateRoutesRequest,
    VolumeStatsRequest,
    WaitProcessRequest,
);

gated!(ReseedRandomDevRequest with data, SetIPTablesRequest with data, WriteStreamRequest with data);

impl Gated for CopyFileRequest {
    const NAME: &'static str = "CopyFileRequest";

    /// Kata shows its policies the kind of file and the target of a link, and not the data.
    fn input(&self) -> Value {
        let kind = FileKind::of(self);
        let target =
            if kind == FileKind::Link { String::from_utf8_lossy(&self.data).into_owned() } else { String::new() };
        json!({
            "path": self.path,
            "file_type": match kind {
                FileKind::Regular => "Regular",
                FileKind::Directory => "Directory",
                FileKind::Link => "Symlink",
                FileKind::Unknown => "Unknown",
            },
            "symlink_target": target,
            "file_size": self.file_size,
            "file_mode": self.file_mode,
            "dir_mode": self.dir_mode,
            "uid": self.uid,
            "gid": self.gid,
            "offset": self.offset,
        })
    }
}

/// What a request to copy a file is about, by its mode.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Regular,
    Directory,
    Link,
    Unknown,
}

impl FileKind {
    pub(crate) fn of(request: &CopyFileRequest) -> Self {
        match request.file_mode & FORMAT {
            REGULAR => Self::Regular,
            DIRECTORY => Self::Directory,
            LINK => Self::Link,
            _ => Self::Unknown,
        }
    }
}

const FORMAT: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const LINK: u32 = 0o120_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_input_of_a_copied_file_has_no_data() {
        let link =
            CopyFileRequest { path: "/p".into(), file_mode: 0o120_777, data: b"../t".to_vec(), ..Default::default() };
        let input = link.input();
        assert_eq!((&input["file_type"], &input["symlink_target"]), (&json!("Symlink"), &json!("../t")));
        let file = CopyFileRequest { file_mode: 0o100_644, data: vec![0; 9], ..Default::default() };
        assert_eq!((&file.input()["file_type"], &file.input()["symlink_target"]), (&json!("Regular"), &json!("")));
        assert!(file.input().get("data").is_none());
    }

    #[test]
    fn a_request_is_named_as_its_type_and_shown_whole() {
        assert_eq!(ReadStreamRequest::NAME, "ReadStreamRequest");
        let write = WriteStreamRequest { container_id: "c".into(), data: vec![1, 2], ..Default::default() };
        assert_eq!(write.input(), json!({"container_id": "c", "exec_id": "", "data": [1, 2]}));
        assert_eq!(write.payload(), 2);
    }
}
