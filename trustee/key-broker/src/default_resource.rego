# Which guest may have which resource, unless the owner sets another policy: every guest with evidence of real
# hardware may have every resource. Evidence of the sample TEE proves nothing and opens nothing.
package policy

import rego.v1

default allow := false

allow if {
	data.plugin == "resource"
	evidence := input.submods.cpu0["ear.veraison.annotated-evidence"]
	not evidence.sample
}
