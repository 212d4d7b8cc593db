# How a protected PCIe machine as a whole is appraised unless the owner sets another policy.
#
# There is such a part only where the verifier has found each GPU and each switch connected to the others; they are
# parts of their own besides. A claim of 2 affirms, 36 warns (AR4SI).
package policy

import rego.v1

default configuration := 36

trust_claims := {"configuration": configuration}

configuration := 2 if {
	input.nvidia.gpu_count == 8
	input.nvidia.switch_count == 4
}
