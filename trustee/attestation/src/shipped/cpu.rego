# How evidence of a CPU is appraised unless the owner sets another policy.
#
# Without reference values nothing is affirmed: register the values named here, or write a policy of your own.
# A claim of 2, 3 or 4 affirms, 33 and 36 warn, 97 contraindicates (AR4SI).
package policy

import rego.v1

# SGX, CSV and CCA have no rules here.
default trust_claims := {"executables": 33, "hardware": 97, "configuration": 36}

# The sample TEE proves nothing; its rules are here to try the rest.

trust_claims := {
	"executables": sample_executables,
	"hardware": sample_hardware,
	"configuration": sample_configuration,
} if input.sample

sample_executables := 3 if {
	input.sample.launch_digest in query_reference_value("launch_digest")
} else := 33

sample_hardware := 2 if {
	input.sample.svn in query_reference_value("svn")
	input.sample.platform_version.major == query_reference_value("major_version")
	minimum := query_reference_value("minimum_minor_version")
	is_number(minimum) # every number is above null, the answer for an unknown name
	input.sample.platform_version.minor >= minimum
} else := 97

sample_configuration := 2 if {
	input.sample.debug == false
} else := 36

# AMD SEV-SNP: the firmware and what it loads are one measurement.

trust_claims := {
	"executables": snp_executables,
	"hardware": snp_hardware,
	"configuration": snp_configuration,
} if input.snp

snp_executables := 3 if {
	input.snp.measurement in query_reference_value("snp_launch_measurement")
} else := 33

snp_hardware := 2 if {
	input.snp.reported_tcb_bootloader in query_reference_value("snp_bootloader")
	input.snp.reported_tcb_microcode in query_reference_value("snp_microcode")
	input.snp.reported_tcb_snp in query_reference_value("snp_snp_svn")
	input.snp.reported_tcb_tee in query_reference_value("snp_tee_svn")
} else := 97

snp_configuration := 2 if {
	closed(input.snp)
	input.snp.platform_smt_enabled == query_reference_value("snp_smt_enabled")
	input.snp.platform_tsme_enabled == query_reference_value("snp_tsme_enabled")
	input.snp.policy_abi_major == query_reference_value("snp_guest_abi_major")
	input.snp.policy_abi_minor == query_reference_value("snp_guest_abi_minor")
	input.snp.policy_single_socket == query_reference_value("snp_single_socket")
	input.snp.policy_smt_allowed == query_reference_value("snp_smt_allowed")
} else := 3 if {
	closed(input.snp)
} else := 36

# Intel TDX: kernel and command line are in the event log, whose replay the verifier has compared with the RTMRs.

trust_claims := {
	"executables": tdx_executables,
	"hardware": tdx_hardware,
	"configuration": td_configuration(input.tdx),
} if input.tdx

tdx_executables := 3 if {
	known_rtmrs
	known_kernel
	known_parameters
} else := 4 if {
	known_rtmrs
} else := 33

tdx_hardware := 2 if {
	genuine_td(input.tdx)
	input.tdx.collateral_expiration_status == "0"
} else := 97

known_rtmrs if {
	input.tdx.quote.body.rtmr_1 in query_reference_value("rtmr_1")
	input.tdx.quote.body.rtmr_2 in query_reference_value("rtmr_2")
}

known_kernel if {
	some entry in input.tdx.uefi_event_logs
	entry.type_name == "EV_EFI_BOOT_SERVICES_APPLICATION"
	"File(kernel)" in entry.details.device_paths
	some measured in entry.digests
	measured.digest == query_reference_value("tdvfkernel")
}

known_parameters if {
	some entry in input.tdx.uefi_event_logs
	entry.type_name == "EV_EVENT_TAG"
	entry.details.string == "LOADED_IMAGE::LoadOptions"
	some measured in entry.digests
	measured.digest == query_reference_value("tdvfkernelparams")
}

# Azure on AMD SEV-SNP: the vTPM measures what is booted. Its claims are texts.

trust_claims := {
	"executables": az_snp_executables,
	"hardware": az_snp_hardware,
	"configuration": az_snp_configuration,
} if input["az-snp-vtpm"]

az_snp := input["az-snp-vtpm"]

az_snp_executables := 3 if {
	az_snp.measurement in query_reference_value("measurement")
	az_snp.tpm.pcr11 in query_reference_value("snp_pcr11")
} else := 33

az_snp_hardware := 2 if {
	az_snp.reported_tcb_bootloader in query_reference_value("tcb_bootloader")
	az_snp.reported_tcb_microcode in query_reference_value("tcb_microcode")
	az_snp.reported_tcb_snp in query_reference_value("tcb_snp")
	az_snp.reported_tcb_tee in query_reference_value("tcb_tee")
} else := 97

az_snp_configuration := 2 if {
	closed(az_snp)
	az_snp.platform_smt_enabled in query_reference_value("smt_enabled")
	az_snp.platform_tsme_enabled in query_reference_value("tsme_enabled")
	az_snp.policy_abi_major in query_reference_value("abi_major")
	az_snp.policy_abi_minor in query_reference_value("abi_minor")
	az_snp.policy_single_socket in query_reference_value("single_socket")
	az_snp.policy_smt_allowed in query_reference_value("smt_allowed")
} else := 36

# Azure on Intel TDX.

trust_claims := {
	"executables": az_tdx_executables,
	"hardware": az_tdx_hardware,
	"configuration": td_configuration(az_tdx),
} if input["az-tdx-vtpm"]

az_tdx := input["az-tdx-vtpm"]

az_tdx_executables := 3 if {
	az_tdx.tpm.pcr11 in query_reference_value("tdx_pcr11")
} else := 33

az_tdx_hardware := 2 if {
	genuine_td(az_tdx)
	object.get(az_tdx, "collateral_expiration_status", "0") == "0"
} else := 97

# A TPM is worth as much as the key that its quote is signed with: anyone can make one in software.

trust_claims := {
	"executables": tpm_executables,
	"hardware": tpm_hardware,
	"configuration": 0,
} if input.tpm

tpm_executables := 3 if {
	known_tpm
	input.tpm.pcr11 in query_reference_value("tpm_pcr11")
} else := 33

tpm_hardware := 2 if {
	known_tpm
} else := 97

known_tpm if {
	input.tpm.ak_public in query_reference_value("trusted_aks")
}

# IBM Secure Execution: the verifier accepts only what the owner's image and host keys vouch for.

trust_claims := {"executables": 3, "hardware": 2, "configuration": 2} if input.se

# What an agent policy in initdata says about containers, for policies on resources to read.

extensions := [{
	"name": "ear.trustee.identifiers",
	"key": -18,
	"value": {"validated": identifiers},
}] if {
	containers
	count(identifiers) > 0
}

identifiers["container_images"] := images if {
	images := [container.OCI.Annotations["io.kubernetes.cri.image-name"] | some container in containers]
	count(images) > 0
}

identifiers["container_uids"] := uids if {
	uids := [container.OCI.Process.User.UID | some container in containers]
	count(uids) > 0
}

containers := found if {
	found := input.init_data_claims.agent_policy_claims.containers
	is_array(found) # the guest may have written anything, and a loop over a text is an error
}

# Neither the host nor a migration agent can look into a guest with these claims.
closed(claims) if {
	off(claims.policy_debug_allowed)
	off(claims.policy_migrate_ma)
}

off(flag) if flag in {false, 0, "false", "0"}

# A quote of an up-to-date TDX platform, signed by Intel's quoting enclave, of a TD with known firmware.
genuine_td(claims) if {
	claims.quote.header.tee_type == "81000000"
	claims.quote.header.vendor_id == "939a7233f79c4ca9940a0db3957f0607"
	claims.quote.body.mr_td in query_reference_value("mr_td")
	claims.tcb_status == "UpToDate"
}

td_configuration(claims) := 2 if {
	claims.td_attributes.debug == false
	claims.quote.body.xfam in query_reference_value("xfam")
} else := 36
