//! The ttrpc services between host and guest and inside the guest, generated from `proto/`.
//!
//! Field numbers and names are those of Kata Containers and of Confidential Containers, so that either side of
//! each service can be theirs. The messages of [`agent`], [`oci`] and [`types`] also serialise to the JSON that
//! Kata policies expect: proto field names as written, `type` as `type_`, enums as integers, unset messages
//! `null`, bytes as arrays of numbers.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

#[allow(missing_docs, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/index.rs"));
}
mod policy_json;

pub use generated::{
    agent, agent_ttrpc, attestation_agent, attestation_agent_ttrpc, confidential_data_hub, confidential_data_hub_ttrpc,
    health, health_ttrpc, key_provider, key_provider_ttrpc, oci, remote_hypervisor, remote_hypervisor_ttrpc, types,
};

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::{EnumOrUnknown, Message, MessageField};
    use serde_json::json;

    fn request() -> agent::CreateContainerRequest {
        agent::CreateContainerRequest {
            container_id: "c1".into(),
            storages: vec![agent::Storage {
                driver: "image_guest_pull".into(),
                fs_group: MessageField::some(agent::FSGroup {
                    group_id: 7,
                    group_change_policy: EnumOrUnknown::new(types::FSGroupChangePolicy::OnRootMismatch),
                    ..Default::default()
                }),
                ..Default::default()
            }],
            OCI: MessageField::some(oci::Spec {
                Version: "1.1.0".into(),
                Process: MessageField::some(oci::Process { Args: vec!["sh".into()], ..Default::default() }),
                Mounts: vec![oci::Mount { destination: "/proc".into(), type_: "proc".into(), ..Default::default() }],
                Annotations: [("io.kubernetes.cri.container-type".to_owned(), "container".to_owned())].into(),
                ..Default::default()
            }),
            stdout_port: Some(9),
            ..Default::default()
        }
    }

    #[test]
    fn a_request_has_the_json_form_that_policies_expect() {
        let json = serde_json::to_value(request()).unwrap();
        assert_eq!(
            json["storages"],
            json!([{
                "driver": "image_guest_pull", "driver_options": [], "source": "", "fstype": "", "options": [],
                "mount_point": "", "fs_group": {"group_id": 7, "group_change_policy": 1}, "shared": false,
            }])
        );
        assert_eq!(
            json["OCI"]["Mounts"],
            json!([{"destination": "/proc", "source": "", "type_": "proc", "options": []}])
        );
        assert_eq!(json["OCI"]["Annotations"], json!({"io.kubernetes.cri.container-type": "container"}));
        assert_eq!(
            json["OCI"]["Process"],
            json!({
                "Terminal": false, "ConsoleSize": null, "User": null, "Args": ["sh"], "Env": [], "Cwd": "",
                "Capabilities": null, "Rlimits": [], "NoNewPrivileges": false, "ApparmorProfile": "",
                "OOMScoreAdj": 0, "SelinuxLabel": "",
            })
        );
        for unset in ["Hooks", "Linux", "Solaris", "Windows", "Root"] {
            assert_eq!(json["OCI"][unset], json!(null), "{unset}");
        }
        let mut members: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        members.sort_unstable();
        assert_eq!(
            members,
            [
                "OCI",
                "container_id",
                "devices",
                "exec_id",
                "sandbox_pidns",
                "shared_mounts",
                "stderr_port",
                "stdin_port",
                "stdout_port",
                "storages",
                "string_user",
            ]
        );
        assert_eq!((&json["stdout_port"], &json["stdin_port"]), (&json!(9), &json!(null)));
    }

    #[test]
    fn bytes_are_arrays_of_numbers() {
        let request = agent::WriteStreamRequest { data: vec![104, 105], ..Default::default() };
        assert_eq!(serde_json::to_value(request).unwrap()["data"], json!([104, 105]));
    }

    #[test]
    fn the_json_form_reads_back_and_takes_missing_members_for_unset() {
        let json = serde_json::to_value(request()).unwrap();
        assert_eq!(serde_json::from_value::<agent::CreateContainerRequest>(json).unwrap(), request());
        let partial: agent::UpdateInterfaceRequest =
            serde_json::from_value(json!({"interface": {"name": "eth0", "type_": "veth"}})).unwrap();
        assert_eq!(partial.interface.type_, "veth");
    }

    #[test]
    fn field_numbers_are_kata_s() {
        // Written by hand: field 2 (u32) of RemoveContainerRequest, field 3 of WriteStreamRequest, and so on.
        let remove = agent::RemoveContainerRequest { container_id: "c".into(), timeout: 5, ..Default::default() };
        assert_eq!(remove.write_to_bytes().unwrap(), [0x0a, 1, b'c', 0x10, 5]);
        let group = agent::FSGroup { group_id: 3, ..Default::default() };
        assert_eq!(group.write_to_bytes().unwrap(), [0x10, 3]);
        let reseed = agent::ReseedRandomDevRequest { data: vec![1], ..Default::default() };
        assert_eq!(reseed.write_to_bytes().unwrap(), [0x12, 1, 1]);
        let create = agent::CreateContainerRequest { stderr_port: Some(0), ..Default::default() };
        assert_eq!(create.write_to_bytes().unwrap(), [0x58, 0]);
        let spec = oci::Spec { Version: "1".into(), ..Default::default() };
        let create = agent::CreateContainerRequest { OCI: MessageField::some(spec), ..Default::default() };
        assert_eq!(create.write_to_bytes().unwrap(), [0x32, 3, 0x0a, 1, b'1']);
        let create = remote_hypervisor::CreateVMRequest {
            id: "i".into(),
            annotations: [("k".to_owned(), "v".to_owned())].into(),
            networkNamespacePath: "n".into(),
            ..Default::default()
        };
        let bytes = b"\x0a\x01i\x12\x06\x0a\x01k\x12\x01v\x1a\x01n";
        assert_eq!(create.write_to_bytes().unwrap(), bytes);
    }
}
