# How evidence of a CPU is appraised unless the owner sets another policy.
#
# Without reference values nothing is affirmed: register the values named here, or write a policy of your own.
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

# The sample TEE proves nothing; its rules are here to try the rest.

executables := 3 if {
	input.sample.launch_digest in query_reference_value("launch_digest")
}

hardware := 2 if {
	input.sample.svn in query_reference_value("svn")
	input.sample.platform_version.major == query_reference_value("major_version")
	minimum := query_reference_value("minimum_minor_version")
	is_number(minimum) # every number is above null, the answer for an unknown name
	input.sample.platform_version.minor >= minimum
}

configuration := 2 if {
	input.sample.debug == false
}

# What an agent policy in initdata says about containers, for policies on resources to read.

extensions := [{
	"name": "ear.trustee.identifiers",
	"key": -18,
	"value": {"validated": identifiers},
}] if {
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

containers := input.init_data_claims.agent_policy_claims.containers
