//! The shipped policies over claims as verifiers emit them: good ones affirm, and each change of one counts.

#![allow(clippy::unwrap_used)]

mod case;
mod parts;

use std::collections::BTreeMap;
use std::sync::Arc;

use attestation::appraisal::Tier;
use attestation::policy::{Policy, Queried};
use reference_values::Source;
use serde_json::json;

use case::{Case, Values};
use parts::*;

#[test]
fn good_parts_are_affirmed_and_the_same_parts_without_reference_values_are_not() {
    for (case, expected, without) in [
        (sample(), [3, 2, 2], [33, 97, 2]),
        (snp(), [3, 2, 2], [33, 97, 3]),
        (tdx(), [3, 2, 2], [33, 97, 36]),
        (az_snp(), [3, 2, 2], [33, 97, 36]),
        (az_tdx(), [3, 2, 2], [33, 97, 36]),
        (tpm(), [3, 2, 0], [33, 97, 0]),
        (nras_gpu(), [3, 2, 2], [3, 2, 3]),
        (local_gpu(), [3, 2, 2], [33, 2, 36]),
        (switch(), [3, 2, 2], [3, 2, 3]),
    ] {
        let (vector, claims, _) = case.appraise(json!({ case.tee: case.claims }));
        assert_eq!(claims, expected, "{}", case.tee);
        assert_eq!(vector.status(), Tier::Affirming, "{}", case.tee);
        let unknown = Case { values: json!({}), ..case };
        assert_eq!(unknown.claims(), without, "{} without reference values", unknown.tee);
    }
}

#[test]
fn each_claim_and_reference_value_counts() {
    sample().hangs_on(&["/launch_digest", "/svn", "/debug", "/platform_version/major"]);
    snp().hangs_on(&[
        "/measurement",
        "/reported_tcb_bootloader",
        "/reported_tcb_microcode",
        "/reported_tcb_snp",
        "/reported_tcb_tee",
        "/platform_smt_enabled",
        "/platform_tsme_enabled",
        "/policy_abi_major",
        "/policy_abi_minor",
        "/policy_single_socket",
        "/policy_smt_allowed",
        "/policy_debug_allowed",
        "/policy_migrate_ma",
    ]);
    tdx().hangs_on(&[
        "/quote/header/tee_type",
        "/quote/header/vendor_id",
        "/quote/body/mr_td",
        "/quote/body/xfam",
        "/quote/body/rtmr_1",
        "/quote/body/rtmr_2",
        "/tcb_status",
        "/collateral_expiration_status",
        "/td_attributes/debug",
        "/uefi_event_logs/1/type_name",
        "/uefi_event_logs/1/details/device_paths",
        "/uefi_event_logs/1/digests/0/digest",
        "/uefi_event_logs/2/type_name",
        "/uefi_event_logs/2/details/string",
        "/uefi_event_logs/2/digests/0/digest",
    ]);
    az_snp().hangs_on(&[
        "/measurement",
        "/tpm/pcr11",
        "/reported_tcb_bootloader",
        "/reported_tcb_microcode",
        "/reported_tcb_snp",
        "/reported_tcb_tee",
        "/platform_smt_enabled",
        "/platform_tsme_enabled",
        "/policy_abi_major",
        "/policy_abi_minor",
        "/policy_single_socket",
        "/policy_smt_allowed",
        "/policy_debug_allowed",
        "/policy_migrate_ma",
    ]);
    az_tdx().hangs_on(&[
        "/tpm/pcr11",
        "/quote/header/tee_type",
        "/quote/header/vendor_id",
        "/quote/body/mr_td",
        "/quote/body/xfam",
        "/tcb_status",
        "/td_attributes/debug",
    ]);
    tpm().hangs_on(&["/pcr11", "/ak_public"]);
    local_gpu().hangs_on(&["/arch", "/config/vbios_version", "/config/driver_version", "/measurements/1"]);
    for case in [nras_gpu(), switch()] {
        let claims: Vec<String> = case.claims.as_object().unwrap().keys().map(|name| format!("/{name}")).collect();
        case.hangs_on(&claims.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

/// Whatever a policy asks for in vain would be shown to the owner as a difference.
#[test]
fn only_the_reference_values_of_the_parts_own_tee_are_asked_for() {
    for case in [sample(), snp(), tdx(), az_snp(), az_tdx(), tpm(), nras_gpu(), local_gpu(), switch()] {
        let policy = Policy::compile(case.policy).unwrap();
        let (source, mut queried): (Arc<dyn Source>, _) = (Arc::new(Values(BTreeMap::new())), Queried::new());
        let input = json!({ case.tee: case.claims }).into();
        policy.evaluate_with(["trust_claims"], input, &source, &mut queried).unwrap();
        assert!(!queried.is_empty());
        for (name, _) in queried {
            assert!(case.values.get(&name).is_some(), "{} asked for {name}", case.tee);
        }
    }
}

#[test]
fn a_debuggable_guest_is_never_well_configured() {
    for on in [json!(true), json!(1), json!("true"), json!("1"), json!("yes")] {
        for case in [snp(), az_snp()] {
            assert_eq!(case.with("/policy_debug_allowed", Some(on.clone())).claims(), [3, 2, 36], "{} {on}", case.tee);
            assert_eq!(case.with("/policy_migrate_ma", Some(on.clone())).claims(), [3, 2, 36], "{} {on}", case.tee);
        }
        for case in [tdx(), az_tdx()] {
            assert_eq!(case.with("/td_attributes/debug", Some(on.clone())).claims(), [3, 2, 36], "{} {on}", case.tee);
        }
    }
    assert_eq!(sample().with("/debug", Some(json!(true))).claims(), [3, 2, 36]);
}

#[test]
fn lesser_evidence_gets_lesser_claims() {
    let no_log = tdx().with("/uefi_event_logs", Some(json!([])));
    assert_eq!(no_log.claims(), [4, 2, 2]);
    let other_tcb = snp().with("/policy_abi_minor", Some(json!(55)));
    assert_eq!(other_tcb.claims(), [3, 2, 3]);
    let old = tdx().with("/tcb_status", Some(json!("OutOfDate")));
    assert_eq!(old.claims(), [3, 97, 2]);
    let mut expired = az_tdx();
    expired.claims["collateral_expiration_status"] = json!("1");
    assert_eq!(expired.claims(), [3, 97, 2]);
    assert_eq!(sample().with("/platform_version/minor", Some(json!(3))).claims(), [3, 97, 2]);
    let empty = json!({ "allowed_gpu_measurements": {} });
    assert_eq!(Case { values: empty, ..local_gpu() }.claims(), [33, 2, 36]);
}

#[test]
fn every_other_tee_is_appraised_by_what_its_verifier_vouches_for() {
    let cpu = |tee: &'static str| Case { policy: CPU, tee, claims: json!({ "version": "1" }), values: json!({}) };
    assert_eq!(cpu("se").claims(), [3, 2, 2]);
    for tee in ["sgx", "csv", "cca"] {
        assert_eq!(cpu(tee).claims(), [33, 97, 36], "{tee}");
    }
    let device = Case {
        policy: GPU,
        tee: "sampledevice",
        claims: json!({ "svn": "1" }),
        values: json!({ "device_svn": ["1"] }),
    };
    assert_eq!(device.claims(), [33, 2, 36]);
    device.hangs_on(&["/svn"]);

    let together =
        Case { policy: PPCIE, tee: "nvidia", claims: json!({ "gpu_count": 8, "switch_count": 4 }), values: json!({}) };
    assert_eq!(together.claims(), [0, 0, 2]);
    together.hangs_on(&["/gpu_count", "/switch_count"]);

    let dcu = Case {
        policy: DCU,
        tee: "hygondcu",
        claims: json!({ "body": { "chip_id": "c", "measure": "m" } }),
        values: json!({ "dcu_measure": ["m"] }),
    };
    assert_eq!(dcu.claims(), [3, 2, 0]);
    dcu.hangs_on(&["/body/measure"]);

    let dpu = Case {
        policy: DPU,
        tee: "nvidia-dpu",
        claims: json!({ "device_class": "bluefield3", "device_serial": "s", "accumulated_fwid": "f" }),
        values: json!({ "dpu_fwid": ["f"] }),
    };
    assert_eq!(dpu.claims(), [3, 2, 0]);
    dpu.hangs_on(&["/accumulated_fwid"]);
    for (serial, identity) in [("s", 2), ("other", 0)] {
        let known = Case { values: json!({ "dpu_device_serial": [serial] }), claims: dpu.claims.clone(), ..dpu };
        let (vector, ..) = known.appraise(json!({ known.tee: known.claims }));
        assert_eq!(vector.to_json()["instance-identity"], identity);
    }
}

#[test]
fn identifiers_come_from_the_agent_policy_and_empty_ones_are_left_out() {
    let container = |image: Option<&str>, uid: Option<u32>| {
        let mut oci = json!({});
        if let Some(image) = image {
            oci["Annotations"] = json!({ "io.kubernetes.cri.image-name": image });
        }
        if let Some(uid) = uid {
            oci["Process"] = json!({ "User": { "UID": uid } });
        }
        json!({ "OCI": oci })
    };
    for (containers, validated) in [
        (json!([]), None),
        (json!([container(None, None)]), None),
        (json!([container(Some("a"), None)]), Some(json!({ "container_images": ["a"] }))),
        (json!([container(None, Some(0))]), Some(json!({ "container_uids": [0] }))),
        (
            json!([container(Some("a"), Some(1)), container(Some("b"), None)]),
            Some(json!({ "container_images": ["a", "b"], "container_uids": [1] })),
        ),
        (json!("no list"), None),
    ] {
        let input = json!({
            "sample": sample().claims,
            "init_data_claims": { "agent_policy_claims": { "containers": containers } },
        });
        let (_, claims, extensions) = sample().appraise(input);
        assert_eq!(claims, [3, 2, 2]);
        let expected = validated.map(
            |validated| json!([{ "name": "ear.trustee.identifiers", "key": -18, "value": { "validated": validated } }]),
        );
        assert_eq!(extensions, expected, "{containers}");
    }
}
