# How evidence of an NVSwitch is appraised unless the owner sets another policy.
#
# Reference value: allowed_switch_bios_versions, a list. A claim of 2 or 3 affirms, 33 and 36 warn, 97 contraindicates
# (AR4SI).
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

hardware := 2 if {
	valid("x-nvidia-switch-attestation-report-cert-chain")
	every check in [
		"x-nvidia-switch-attestation-report-cert-chain-fwid-match",
		"x-nvidia-switch-attestation-report-parsed",
		"x-nvidia-switch-attestation-report-signature-verified",
		"x-nvidia-switch-arch-check",
	] {
		input.nvidia[check] == true
	}
}

configuration := 2 if {
	locked
	input.nvidia["x-nvidia-switch-bios-version"] in query_reference_value("allowed_switch_bios_versions")
} else := 3 if {
	locked
}

executables := 3 if {
	valid("x-nvidia-switch-bios-rim-cert-chain")
	every check in ["fetched", "measurements-available", "schema-validated", "signature-verified", "version-match"] {
		input.nvidia[concat("-", ["x-nvidia-switch-bios-rim", check])] == true
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
