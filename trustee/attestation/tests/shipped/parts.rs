//! Parts with claims as their verifiers emit them, and reference values under which they are affirmed.

use serde_json::{Value, json};

use crate::case::Case;

pub const CPU: &str = include_str!("../../src/shipped/cpu.rego");
pub const GPU: &str = include_str!("../../src/shipped/gpu.rego");
pub const SWITCH: &str = include_str!("../../src/shipped/switch.rego");
pub const PPCIE: &str = include_str!("../../src/shipped/ppcie.rego");
pub const DCU: &str = include_str!("../../src/shipped/dcu.rego");
pub const DPU: &str = include_str!("../../src/shipped/nvidia-dpu.rego");

pub fn sample() -> Case {
    Case {
        policy: CPU,
        tee: "sample",
        claims: json!({
            "launch_digest": "abcde", "svn": "1", "debug": false, "platform_version": { "major": 1, "minor": 4 },
        }),
        values: json!({ "launch_digest": ["abcde"], "svn": ["1"], "major_version": 1, "minimum_minor_version": 4 }),
    }
}

pub fn snp() -> Case {
    Case {
        policy: CPU,
        tee: "snp",
        claims: json!({
            "measurement": "aa", "reported_tcb_bootloader": 2, "reported_tcb_microcode": 20, "reported_tcb_snp": 6,
            "reported_tcb_tee": 0, "platform_smt_enabled": true, "platform_tsme_enabled": false, "policy_abi_major": 0,
            "policy_abi_minor": 0, "policy_single_socket": false, "policy_smt_allowed": true,
            "policy_debug_allowed": false, "policy_migrate_ma": false,
        }),
        values: json!({
            "snp_launch_measurement": ["bb", "aa"], "snp_bootloader": [2, 3], "snp_microcode": [20], "snp_snp_svn": [6],
            "snp_tee_svn": [0], "snp_smt_enabled": true, "snp_tsme_enabled": false, "snp_guest_abi_major": 0,
            "snp_guest_abi_minor": 0, "snp_single_socket": false, "snp_smt_allowed": true,
        }),
    }
}

pub fn quote() -> Value {
    json!({
        "header": { "tee_type": "81000000", "vendor_id": "939a7233f79c4ca9940a0db3957f0607" },
        "body": { "mr_td": "m", "xfam": "x", "rtmr_1": "r1", "rtmr_2": "r2" },
    })
}

pub fn tdx() -> Case {
    Case {
        policy: CPU,
        tee: "tdx",
        claims: json!({
            "quote": quote(), "tcb_status": "UpToDate", "collateral_expiration_status": "0",
            "td_attributes": { "debug": false },
            "uefi_event_logs": [
                { "type_name": "EV_SEPARATOR", "digests": [{ "digest": "s" }], "details": {} },
                {
                    "type_name": "EV_EFI_BOOT_SERVICES_APPLICATION", "digests": [{ "alg": "SHA-384", "digest": "k" }],
                    "details": { "device_paths": ["MemoryMapped", "File(kernel)"] },
                },
                {
                    "type_name": "EV_EVENT_TAG", "digests": [{ "alg": "SHA-384", "digest": "p" }],
                    "details": { "string": "LOADED_IMAGE::LoadOptions" },
                },
            ],
        }),
        values: json!({
            "rtmr_1": ["r1"], "rtmr_2": ["r2"], "tdvfkernel": "k", "tdvfkernelparams": "p", "mr_td": ["m"],
            "xfam": ["x"],
        }),
    }
}

pub fn az_snp() -> Case {
    Case {
        policy: CPU,
        tee: "az-snp-vtpm",
        claims: json!({
            "measurement": "aa==", "tpm": { "pcr11": "p11" }, "reported_tcb_bootloader": "2",
            "reported_tcb_microcode": "20", "reported_tcb_snp": "6", "reported_tcb_tee": "0",
            "platform_smt_enabled": "1", "platform_tsme_enabled": "0", "policy_abi_major": "0",
            "policy_abi_minor": "31", "policy_single_socket": "0", "policy_smt_allowed": "1",
            "policy_debug_allowed": "false",
            "policy_migrate_ma": "0",
        }),
        values: json!({
            "measurement": ["aa=="], "snp_pcr11": ["p11"], "tcb_bootloader": ["2"], "tcb_microcode": ["20"],
            "tcb_snp": ["6"], "tcb_tee": ["0"], "smt_enabled": ["1"], "tsme_enabled": ["0"], "abi_major": ["0"],
            "abi_minor": ["31"], "single_socket": ["0"], "smt_allowed": ["1"],
        }),
    }
}

pub fn az_tdx() -> Case {
    Case {
        policy: CPU,
        tee: "az-tdx-vtpm",
        claims: json!({
            "quote": quote(), "tcb_status": "UpToDate", "td_attributes": { "debug": false }, "tpm": { "pcr11": "p11" },
        }),
        values: json!({ "tdx_pcr11": ["p11"], "mr_td": ["m"], "xfam": ["x"] }),
    }
}

pub fn tpm() -> Case {
    Case {
        policy: CPU,
        tee: "tpm",
        claims: json!({ "pcr11": "p11", "ak_public": "key" }),
        values: json!({ "tpm_pcr11": ["p11"], "trusted_aks": ["key"] }),
    }
}

pub fn nras_gpu() -> Case {
    let good = json!({ "x-nvidia-cert-ocsp-status": "good", "x-nvidia-cert-status": "valid" });
    let mut claims = json!({
        "x-nvidia-gpu-attestation-report-cert-chain": good, "x-nvidia-gpu-vbios-rim-cert-chain": good,
        "x-nvidia-gpu-attestation-report-cert-chain-fwid-match": true, "x-nvidia-gpu-attestation-report-parsed": true,
        "x-nvidia-gpu-attestation-report-signature-verified": true, "x-nvidia-gpu-arch-check": true,
        "x-nvidia-gpu-vbios-version": "96.00", "x-nvidia-gpu-driver-version": "550.1", "secboot": true,
        "dbgstat": "disabled", "measres": "success",
    });
    for subject in ["driver", "vbios"] {
        for check in ["fetched", "measurements-available", "schema-validated", "signature-verified", "version-match"] {
            claims[format!("x-nvidia-gpu-{subject}-rim-{check}")] = json!(true);
        }
    }
    let values = json!({ "allowed_vbios_versions": ["96.00"], "allowed_driver_versions": ["550.1"] });
    Case { policy: GPU, tee: "nvidia", claims, values }
}

pub fn local_gpu() -> Case {
    Case {
        policy: GPU,
        tee: "nvidia",
        claims: json!({
            "arch": "HOPPER", "measurements": { "1": "m1", "2": "m2", "3": "varies" },
            "config": { "fwid": "f", "vbios_version": "96.00", "driver_version": "550.1" },
        }),
        values: json!({
            "allowed_vbios_versions": ["96.00"], "allowed_driver_versions": ["550.1"],
            "allowed_gpu_measurements": { "1": "m1", "2": "m2" },
        }),
    }
}

pub fn switch() -> Case {
    let good = json!({ "x-nvidia-cert-ocsp-status": "good", "x-nvidia-cert-status": "valid" });
    let mut claims = json!({
        "x-nvidia-switch-attestation-report-cert-chain": good, "x-nvidia-switch-bios-rim-cert-chain": good,
        "x-nvidia-switch-attestation-report-cert-chain-fwid-match": true,
        "x-nvidia-switch-attestation-report-parsed": true,
        "x-nvidia-switch-attestation-report-signature-verified": true, "x-nvidia-switch-arch-check": true,
        "x-nvidia-switch-bios-version": "96.10", "secboot": true, "dbgstat": "disabled", "measres": "success",
    });
    for check in ["fetched", "measurements-available", "schema-validated", "signature-verified", "version-match"] {
        claims[format!("x-nvidia-switch-bios-rim-{check}")] = json!(true);
    }
    Case { policy: SWITCH, tee: "nvidia", claims, values: json!({ "allowed_switch_bios_versions": ["96.10"] }) }
}
