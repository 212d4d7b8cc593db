# How evidence of a Hygon DCU is appraised unless the owner sets another policy.
#
# Reference value: dcu_measure, a list. A claim of 2 or 3 affirms, 33 warns, 97 contraindicates (AR4SI).
package policy

import rego.v1

default executables := 33

default hardware := 97

trust_claims := {
	"executables": executables,
	"hardware": hardware,
}

# The verifier accepts only reports whose certificates lead to Hygon.

hardware := 2 if {
	input.hygondcu.body.chip_id
}

executables := 3 if {
	input.hygondcu.body.measure in query_reference_value("dcu_measure")
}
