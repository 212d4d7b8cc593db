# Resource policy of a data owner: a guest gets a resource if all the claims that are listed here have one of the
# values that are expected. "expected" also tells Trustee what to say to the owner about a refusal.
#
# The claim "init_data" is the digest in base64, and "cocoon initdata build" prints it in hexadecimal. With what it has
# printed in the file initdata.digest, this writes it as the claim has it:
#
#   tr -d '\n' < initdata.digest | tr a-f A-F | basenc --base16 --decode | base64 --wrap 0
#
# The status "affirming" takes reference values for what the guest was measured to be: docs/trustee.md, section 2.
package policy

import rego.v1

default allow := false

allow if {
	every expectation in expected {
		claim(expectation.claim) in expectation.values
	}
}

# The claim at a JSON pointer (RFC 6901); no claim here has "~" in its name.
claim(pointer) := object.get(input, array.slice(split(pointer, "/"), 1, 99), null)

expected := [
	{"claim": "/submods/cpu0/ear.status", "values": ["affirming"]},
	{
		"claim": "/submods/cpu0/ear.veraison.annotated-evidence/init_data",
		"values": ["REPLACE_WITH_THE_DIGEST_OF_YOUR_INITDATA"],
	},
]
