# How evidence of a GPU is appraised unless the owner sets another policy.
#
# Reference values: allowed_vbios_versions and allowed_driver_versions, lists; allowed_gpu_measurements, an object from
# a measurement's index to its digest, for GPUs that are verified without NVIDIA's service.
# A claim of 2 or 3 affirms, 33 and 36 warn, 97 contraindicates (AR4SI).
package policy

import rego.v1

default executables := 33

default hardware := 97

default configuration := 36

trust_claims := {
	"executables": executables,
	"hardware": hardware,
	"configuration": configuration,
}

# The sample device proves nothing; its rule is here to try the rest.

hardware := 2 if {
	input.sampledevice
	input.sampledevice.svn in query_reference_value("device_svn")
}

# GPUs that NVIDIA's remote attestation service has verified.

hardware := 2 if {
	valid("x-nvidia-gpu-attestation-report-cert-chain")
	every check in [
		"x-nvidia-gpu-attestation-report-cert-chain-fwid-match",
		"x-nvidia-gpu-attestation-report-parsed",
		"x-nvidia-gpu-attestation-report-signature-verified",
		"x-nvidia-gpu-arch-check",
	] {
		input.nvidia[check] == true
	}
}

configuration := 2 if {
	locked
	input.nvidia["x-nvidia-gpu-vbios-version"] in query_reference_value("allowed_vbios_versions")
	input.nvidia["x-nvidia-gpu-driver-version"] in query_reference_value("allowed_driver_versions")
} else := 3 if {
	locked
}

executables := 3 if {
	valid("x-nvidia-gpu-vbios-rim-cert-chain")
	every subject in ["driver", "vbios"] {
		every check in ["fetched", "measurements-available", "schema-validated", "signature-verified", "version-match"] {
			input.nvidia[concat("-", ["x-nvidia-gpu", subject, "rim", check])] == true
		}
	}
	input.nvidia.measres == "success"
}

locked if {
	input.nvidia.secboot == true
	input.nvidia.dbgstat == "disabled"
}

valid(chain) if {
	input.nvidia[chain]["x-nvidia-cert-ocsp-status"] == "good"
	input.nvidia[chain]["x-nvidia-cert-status"] == "valid"
}

# GPUs that the Trustee has verified itself: the report's signature, its certificates, and that its firmware is the one
# these were made for.

hardware := 2 if {
	input.nvidia.config.fwid
	input.nvidia.arch in {"HOPPER", "BLACKWELL"}
}

configuration := 2 if {
	input.nvidia.config
	input.nvidia.config.vbios_version in query_reference_value("allowed_vbios_versions")
	input.nvidia.config.driver_version in query_reference_value("allowed_driver_versions")
}

executables := 3 if {
	input.nvidia.measurements
	expected := query_reference_value("allowed_gpu_measurements")
	is_object(expected)
	count(expected) > 0
	every index, digest in expected {
		input.nvidia.measurements[index] == digest
	}
}
