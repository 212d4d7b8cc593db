//! Services, methods, fields and their numbers, as upstream's programs have them compiled in: every message of both services
//! against its bytes, over both protocols.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use wire_grpc::{attestation_agent as aa, confidential_data_hub as cdh, key_provider};
use wire_ttrpc::{
    attestation_agent as aa_rpc, attestation_agent_ttrpc as aa_services, confidential_data_hub as cdh_rpc,
    confidential_data_hub_ttrpc as cdh_services, key_provider as key_rpc, key_provider_ttrpc as key_services,
};

#[test]
fn services_and_methods_have_upstreams_names() {
    struct Nobody;
    impl aa_services::AttestationAgentService for Nobody {}
    impl cdh_services::GetResourceService for Nobody {}
    impl cdh_services::ImagePullService for Nobody {}
    impl cdh_services::SealedSecretService for Nobody {}
    impl cdh_services::SecureMountService for Nobody {}
    impl key_services::KeyProviderService for Nobody {}

    let nobody = Arc::new(Nobody);
    let served = [
        aa_services::create_attestation_agent_service(nobody.clone()),
        cdh_services::create_get_resource_service(nobody.clone()),
        cdh_services::create_image_pull_service(nobody.clone()),
        cdh_services::create_sealed_secret_service(nobody.clone()),
        cdh_services::create_secure_mount_service(nobody.clone()),
        key_services::create_key_provider_service(nobody),
    ];
    let served = served.iter().flatten();
    let found: BTreeSet<String> = served
        .flat_map(|(service, methods)| methods.methods.keys().map(move |method| format!("{service}/{method}")))
        .collect();
    let expected = [
        "api.GetResourceService/GetResource",
        "api.ImagePullService/PullImage",
        "api.SealedSecretService/UnsealSecret",
        "api.SecureMountService/SecureMount",
        "attestation_agent.AttestationAgentService/BindInitData",
        "attestation_agent.AttestationAgentService/ExtendRuntimeMeasurement",
        "attestation_agent.AttestationAgentService/GetAdditionalEvidence",
        "attestation_agent.AttestationAgentService/GetAdditionalTees",
        "attestation_agent.AttestationAgentService/GetEvidence",
        "attestation_agent.AttestationAgentService/GetTeeType",
        "attestation_agent.AttestationAgentService/GetToken",
        "keyprovider.KeyProviderService/UnWrapKey",
        "keyprovider.KeyProviderService/WrapKey",
    ];
    assert_eq!(found, expected.map(str::to_owned).into());
}

#[test]
fn the_attestation_agents_messages_have_upstreams_bytes() {
    let bytes = |content: &'static [u8]| content.into();
    alike::<aa_rpc::GetEvidenceRequest, _>(&aa::GetEvidenceRequest { runtime_data: bytes(b"x") }, "0a0178");
    alike::<aa_rpc::GetEvidenceResponse, _>(&aa::GetEvidenceResponse { evidence: bytes(b"x") }, "0a0178");
    let additional = aa::GetAdditionalEvidenceRequest { runtime_data: bytes(b"x") };
    alike::<aa_rpc::GetAdditionalEvidenceRequest, _>(&additional, "0a0178");
    alike::<aa_rpc::GetTokenRequest, _>(&aa::GetTokenRequest { token_type: "kbs".to_owned() }, "0a036b6273");
    alike::<aa_rpc::GetTokenResponse, _>(&aa::GetTokenResponse { token: bytes(b"x") }, "0a0178");
    let event = aa::ExtendRuntimeMeasurementRequest {
        domain: "d".to_owned(),
        operation: "o".to_owned(),
        content: "c".to_owned(),
        register_index: Some(0),
    };
    // The index is optional: zero is sent.
    alike::<aa_rpc::ExtendRuntimeMeasurementRequest, _>(&event, "0a016412016f1a01632000");
    for (result, expected) in [
        (aa::RuntimeMeasurementResult::Ok, ""),
        (aa::RuntimeMeasurementResult::NotSupported, "0801"),
        (aa::RuntimeMeasurementResult::NotEnabled, "0802"),
    ] {
        let response = aa::ExtendRuntimeMeasurementResponse { result: result.into() };
        alike::<aa_rpc::ExtendRuntimeMeasurementResponse, _>(&response, expected);
    }
    alike::<aa_rpc::BindInitDataRequest, _>(&aa::BindInitDataRequest { digest: bytes(b"x") }, "0a0178");
    alike::<aa_rpc::BindInitDataResponse, _>(&aa::BindInitDataResponse {}, "");
    alike::<aa_rpc::GetTeeTypeRequest, _>(&aa::GetTeeTypeRequest {}, "");
    alike::<aa_rpc::GetTeeTypeResponse, _>(&aa::GetTeeTypeResponse { tee: "tdx".to_owned() }, "0a03746478");
    alike::<aa_rpc::GetAdditionalTeesRequest, _>(&aa::GetAdditionalTeesRequest {}, "");
    let tees = aa::GetAdditionalTeesResponse { additional_tees: vec!["a".to_owned(), "b".to_owned()] };
    alike::<aa_rpc::GetAdditionalTeesResponse, _>(&tees, "0a01610a0162");
}

#[test]
fn the_data_hubs_messages_have_upstreams_bytes() {
    let bytes = |content: &'static [u8]| content.into();
    alike::<cdh_rpc::UnsealSecretInput, _>(&cdh::UnsealSecretInput { secret: bytes(b"x") }, "0a0178");
    alike::<cdh_rpc::UnsealSecretOutput, _>(&cdh::UnsealSecretOutput { plaintext: bytes(b"x") }, "0a0178");
    alike::<cdh_rpc::GetResourceRequest, _>(&cdh::GetResourceRequest { resource_path: "x".to_owned() }, "0a0178");
    alike::<cdh_rpc::GetResourceResponse, _>(&cdh::GetResourceResponse { resource: bytes(b"x") }, "0a0178");
    let mount = cdh::SecureMountRequest {
        volume_type: "t".to_owned(),
        options: [("k".to_owned(), "v".to_owned())].into(),
        flags: vec!["f".to_owned(), "g".to_owned()],
        mount_point: "m".to_owned(),
    };
    alike::<cdh_rpc::SecureMountRequest, _>(&mount, "0a017412060a016b1201761a01661a016722016d");
    alike::<cdh_rpc::SecureMountResponse, _>(&cdh::SecureMountResponse {}, "");
    let pull = cdh::ImagePullRequest { image_url: "i".to_owned(), bundle_path: "b".to_owned() };
    alike::<cdh_rpc::ImagePullRequest, _>(&pull, "0a0169120162");
    alike::<cdh_rpc::ImagePullResponse, _>(&cdh::ImagePullResponse { manifest_digest: "d".to_owned() }, "0a0164");
    let input = key_provider::KeyProviderKeyWrapProtocolInput { key_provider_key_wrap_protocol_input: bytes(b"x") };
    alike::<key_rpc::KeyProviderKeyWrapProtocolInput, _>(&input, "0a0178");
    let output = key_provider::KeyProviderKeyWrapProtocolOutput { key_provider_key_wrap_protocol_output: bytes(b"x") };
    alike::<key_rpc::KeyProviderKeyWrapProtocolOutput, _>(&output, "0a0178");
}

/// gRPC's message has these bytes, and ttrpc's reads each of them and writes the same.
fn alike<Rpc: protobuf::Message, Grpc: prost::Message + Debug>(message: &Grpc, expected: &str) {
    let bytes = message.encode_to_vec();
    let written: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(written, expected, "{message:?}");
    let read = Rpc::parse_from_bytes(&bytes).unwrap();
    assert!(read.special_fields().unknown_fields().iter().next().is_none(), "{message:?}");
    assert_eq!(read.write_to_bytes().unwrap(), bytes, "{message:?}");
}
