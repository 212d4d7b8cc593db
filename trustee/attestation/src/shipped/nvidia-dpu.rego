# How evidence of an NVIDIA DPU is appraised unless the owner sets another policy.
#
# Reference values: dpu_fwid, the accumulated firmware ids, and dpu_device_serial, if the owner knows each device; both
# are lists. A claim of 2 or 3 affirms, 33 warns, 97 contraindicates (AR4SI).
package policy

import rego.v1

default executables := 33

default hardware := 97

default identity := 0

trust_claims := {
	"executables": executables,
	"hardware": hardware,
	"instance-identity": identity,
}

# The verifier accepts only evidence whose certificates lead to NVIDIA.

hardware := 2 if {
	input["nvidia-dpu"].device_class
}

executables := 3 if {
	input["nvidia-dpu"].accumulated_fwid in query_reference_value("dpu_fwid")
}

identity := 2 if {
	input["nvidia-dpu"].device_serial in query_reference_value("dpu_device_serial")
}
