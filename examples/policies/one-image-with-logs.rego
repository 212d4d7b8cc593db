# Policy of a guest that runs one image and shows its output to the host.
#
# The host asks, this policy answers; a request without a rule here is denied, so there is no exec, no file copied
# into the guest and no other policy. Rules come first, data last: to adapt this policy, change the data only.
package agent_policy

import rego.v1

CreateSandboxRequest if {
	input.guest_hook_path == ""
	count(input.kernel_modules) == 0
	count(input.storages) == 0
}

UpdateInterfaceRequest if input.interface.name == "eth0"

UpdateRoutesRequest := true

# "images" is what the guest resolved the reference to; exactly that digest is pulled afterwards. Whatever else could
# change what runs is left to the image: no other user, folder, capability, mount, storage or sysctl.
CreateContainerRequest if {
	some container in policy_data.containers
	count(input.images) == 1
	some digest in input.images
	digest == container.image_digest
	count(input.storages) == 1
	count(input.devices) == 0
	input.string_user == null
	of_the_image(input.OCI.Process)
	input.OCI.Process.Args == container.args
	every variable in input.OCI.Process.Env {
		variable in container.env
	}
	count(input.OCI.Mounts) == 0
	count(input.OCI.Linux.Sysctl) == 0
}

of_the_image(process) if {
	process.User == null
	process.Capabilities == null
	process.Cwd in ["", "/"]
	count(process.Rlimits) == 0
}

StartContainerRequest := true

WaitProcessRequest := true

SignalProcessRequest := true

RemoveContainerRequest := true

DestroySandboxRequest := true

GuestDetailsRequest := true

# The container's output leaves the guest.
ReadStreamRequest := true

# A command that the host may run in the container must stand in the data.
ExecProcessRequest if {
	input.process.Args in policy_data.exec_commands
	input.string_user == null
	of_the_image(input.process)
	count(input.process.Env) == 0
}

# No arguments: the image's own command, which the digest fixes.
policy_data := {
  "containers": [
    {
      "image_digest": "sha256:REPLACE_WITH_THE_DIGEST_OF_YOUR_IMAGE",
      "args": [],
      "env": []
    }
  ],
  "exec_commands": []
}
