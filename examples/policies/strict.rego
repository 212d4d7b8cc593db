# Policy of a pod of which the host may change nothing: images by their digest, each with the command that is its own, no
# command from outside, and no output. A request without a rule here is denied.
#
# The data comes first and the rules follow: to adapt this policy, change the data only. "uid" and "gid" are numbers, or "image":
# whom the image names, looked up in the image by the guest.
package agent_policy

import rego.v1

policy_data := {
  "containers": [
    {
      "image_digest": "sha256:REPLACE_WITH_THE_DIGEST_OF_YOUR_IMAGE",
      "args": [],
      "env": [],
      "uid": "image",
      "gid": "image",
      "groups": [0, 10],
      "mounts": ["/var/run/secrets/kubernetes.io/serviceaccount"]
    }
  ],
  "exec_commands": [],
  "forwarded_ports": [],
  "output_leaves_the_guest": false,
  "env_patterns": [
    "^PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin$",
    "^HOSTNAME=[a-z0-9.-]+$",
    "^TERM=xterm$",
    "^[A-Z0-9_]+_SERVICE_(HOST|PORT|PORT_[A-Z0-9_]+)=[a-z0-9:.-]*$",
    "^[A-Z0-9_]+_PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?=[a-z0-9:/.-]*$"
  ],
  "kernel_parameters": {
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 2147483647"
  },
  "capabilities": [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT"
  ]
}

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

UpdateInterfaceRequest if regex.match(`^eth[0-9]{1,2}$`, input.interface.name)

UpdateRoutesRequest := true

AddARPNeighborsRequest := true

# Files of volumes, and those that Kubernetes writes for each container. A link stays in its folder.
CopyFileRequest if {
	input.file_type in ["Regular", "Directory", "Symlink"]
	not startswith(input.symlink_target, "/")
	not regex.match(`(^|/)\.\.(/|$)`, input.symlink_target)
}

# The pod's sandbox container: the guest runs a process of its own, whatever the host asks for.
CreateContainerRequest if {
	input.guest_pause
	not input.sandbox_pidns
	every name, value in input.OCI.Linux.Sysctl {
		policy_data.kernel_parameters[name] == value
	}
}

# Environment and user are kept, since commands in the container run with them.
#
# "images" is what the guest resolved the reference to, and exactly that digest is pulled afterwards. "image_process" is what
# that image runs by itself.
CreateContainerRequest := {"allowed": true, "ops": ops} if {
	not input.guest_pause
	some container in policy_data.containers
	count(input.images) == 1
	some digest in input.images
	digest == container.image_digest
	its_command(container, input.OCI.Process)
	its_world(container)
	known := {"env": input.OCI.Process.Env, "user": input.OCI.Process.User}
	ops := [{"op": "add", "path": concat("/", ["/pstate", input.container_id]), "value": known}]
}

# Without arguments the guest takes command, user and folder from the image.
its_command(container, process) if {
	process.Args == []
	container.args == []
	process.User == null
	input.string_user == null
	is_the_image_s(container)
	process.Cwd in ["", "/"]
	known_environment(container, process)
	few_rights(process)
}

# containerd writes out what the image says. Then it has to be what the image says, and nothing may be missing.
its_command(container, process) if {
	process.Args == input.image_process.args
	container.args == []
	every variable in input.image_process.env {
		variable in process.Env
	}
	described(container, process)
}

its_command(container, process) if {
	count(container.args) > 0
	process.Args == container.args
	described(container, process)
}

described(container, process) if {
	known_environment(container, process)
	its_user(container, process)
	its_folder(process)
	few_rights(process)
}

its_folder(process) if process.Cwd == input.image_process.cwd

its_folder(process) if {
	input.image_process.cwd == ""
	process.Cwd == "/"
}

# By its number. A number alone says nothing of the group that the image gives it, so that has to be one, too.
its_user(container, process) if {
	input.string_user == null
	process.User.UID == container.uid
	process.User.GID == container.gid
	its_further_groups(container, process.User.AdditionalGids)
}

# By its name, which only the guest can look up. Then it does not look at the numbers.
its_user(container, _) if {
	input.string_user.uid == user_name(container)
	input.string_user.uid != ""
	its_group(container, input.string_user.gid)
	every group in input.string_user.additionalGids {
		group in [format_int(known, 10) | some known in container.groups]
	}
}

# Whoever asks for nobody gets the image's user.
its_user(container, process) if {
	process.User == null
	input.string_user == null
	is_the_image_s(container)
}

# Kubernetes says the number of root where the image says nothing.
its_user(container, process) if {
	container.uid == "image"
	input.string_user == null
	input.image_process.user in root
	process.User.UID == 0
	its_group(container, format_int(process.User.GID, 10))
	its_further_groups(container, process.User.AdditionalGids)
}

root := ["", "0", "0:0"]

user_name(container) := split(input.image_process.user, ":")[0] if container.uid == "image"

user_name(container) := format_int(container.uid, 10) if is_number(container.uid)

its_group(container, group) if {
	is_number(container.gid)
	group == format_int(container.gid, 10)
}

# No group is the one that the image gives the user.
its_group(container, group) if {
	container.gid == "image"
	group == ""
}

its_group(container, group) if {
	container.gid == "image"
	group == split(input.image_process.user, ":")[1]
}

its_group(container, group) if {
	container.gid == "image"
	input.image_process.user in root
	group == "0"
}

its_further_groups(container, groups) if {
	every group in groups {
		group in container.groups
	}
}

is_the_image_s(container) if {
	container.uid == "image"
	container.gid == "image"
}

is_the_image_s(container) if {
	container.uid == 0
	container.gid == 0
	input.image_process.user in root
}

known_environment(container, process) if {
	every variable in process.Env {
		known_variable(container, variable)
	}
}

known_variable(container, variable) if variable in container.env

known_variable(_, variable) if variable in input.image_process.env

# What Kubernetes and containerd add, unless the image says otherwise.
known_variable(_, variable) if {
	some pattern in policy_data.env_patterns
	regex.match(pattern, variable)
	not split(variable, "=")[0] in image_variables
}

image_variables contains split(variable, "=")[0] if some variable in input.image_process.env

few_rights(process) if {
	count(process.Rlimits) == 0
	known_capabilities(process.Capabilities)
}

known_capabilities(capabilities) if capabilities == null

known_capabilities(capabilities) if {
	every name in array.concat(capabilities.Bounding, capabilities.Ambient) {
		name in policy_data.capabilities
	}
	every name in array.concat(capabilities.Effective, capabilities.Permitted) {
		name in policy_data.capabilities
	}
	count(capabilities.Inheritable) == 0
}

its_world(container) if {
	not input.sandbox_pidns
	count(input.shared_mounts) == 0
	count(input.OCI.Linux.Sysctl) == 0
	every device in input.devices {
		known_device(device.container_path)
	}
	every device in input.OCI.Linux.Devices {
		known_device(device.Path)
	}
	count([storage | some storage in input.storages; storage.driver == "image_guest_pull"]) == 1
	every storage in input.storages {
		known_storage(storage)
	}
	every mount in input.OCI.Mounts {
		known_mount(container, mount)
	}
}

known_storage(storage) if storage.driver in ["image_guest_pull", "ephemeral", "local"]

# A disk of the node, for what ends with the pod: under a key that only the guest has.
known_storage(storage) if {
	storage.driver in ["blk", "scsi"]
	"encryption_key=ephemeral" in storage.driver_options
	"create_filesystem" in storage.driver_options
}

# A disk of the node that images are unpacked to: under a key that only the guest has, and no container sees it.
known_device(path) if path == "/dev/trusted_store"

# Those that are no bind mounts the guest makes its own way.
known_mount(_, mount) if {
	not mount.type_ in ["bind", "tmpfs"]
	not "bind" in mount.options
	not "rbind" in mount.options
}

known_mount(_, mount) if mount.destination in ["/dev", "/dev/shm", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"]

known_mount(_, mount) if mount.destination in ["/dev/termination-log", "/sys/fs/cgroup"]

known_mount(container, mount) if mount.destination in container.mounts

StartContainerRequest := true

WaitProcessRequest := true

SignalProcessRequest := true

UpdateContainerRequest := true

PauseContainerRequest := true

ResumeContainerRequest := true

StatsContainerRequest := true

GetOOMEventRequest := true

default RemoveContainerRequest := true

RemoveContainerRequest := {"allowed": true, "ops": [{"op": "remove", "path": path}]} if {
	data.pstate[input.container_id]
	path := concat("/", ["/pstate", input.container_id])
}

DestroySandboxRequest := true

GuestDetailsRequest := true

TtyWinResizeRequest := true

# A command that the host may run in a container stands in the data, word by word, and runs as the container does.
ExecProcessRequest if {
	input.process.Args in policy_data.exec_commands
	input.string_user == null
	input.process.User == data.pstate[input.container_id].user
	few_rights(input.process)
	every variable in input.process.Env {
		variable in data.pstate[input.container_id].env
	}
}

# Whom the host may connect to on the pod's loopback interface. What listens at the pod's own address, its network reaches anyway.
PortForwardRequest if input.port in policy_data.forwarded_ports

# What containers print, and why they say they ended.
ReadStreamRequest if policy_data.output_leaves_the_guest

GetDiagnosticDataRequest if policy_data.output_leaves_the_guest
