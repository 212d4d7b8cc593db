# What a guest allows whose owner gave it no policy: enough to see that it lives and to take it down.
# No container can be created, no command run, no output read, and no other policy set.
package agent_policy

default GuestDetailsRequest := true

default CreateSandboxRequest := false

CreateSandboxRequest if {
	input.guest_hook_path == ""
	count(input.kernel_modules) == 0
	not input.sandbox_pidns
	every storage in input.storages {
		storage.driver == "ephemeral"
		storage.fstype == "tmpfs"
		storage.mount_point == "/run/kata-containers/sandbox/shm"
	}
}

default UpdateInterfaceRequest := false

UpdateInterfaceRequest if regex.match(`^eth[0-9]{1,2}$`, input.interface.name)

default UpdateRoutesRequest := false

UpdateRoutesRequest if {
	every route in input.routes.Routes {
		regex.match(`^eth[0-9]{1,2}$`, route.device)
	}
}

default StartContainerRequest := true

default WaitProcessRequest := true

default SignalProcessRequest := true

default RemoveContainerRequest := true

default DestroySandboxRequest := true
