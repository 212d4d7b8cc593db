# Policy for finding out what a pod needs, never for a secret: the host may do whatever the guest can, even replace this policy.
#
# Which images run is still said here, so that a forgotten debug policy does not run just anything.
package agent_policy

import rego.v1

policy_data := {"image_digests": ["sha256:REPLACE_WITH_THE_DIGEST_OF_YOUR_IMAGE"]}

CreateContainerRequest if input.guest_pause

CreateContainerRequest if {
	count(input.images) == 1
	some digest in input.images
	digest in policy_data.image_digests
}

CreateSandboxRequest := true

DestroySandboxRequest := true

StartContainerRequest := true

RemoveContainerRequest := true

UpdateContainerRequest := true

PauseContainerRequest := true

ResumeContainerRequest := true

StatsContainerRequest := true

ExecProcessRequest := true

SignalProcessRequest := true

WaitProcessRequest := true

WriteStreamRequest := true

ReadStreamRequest := true

CloseStdinRequest := true

TtyWinResizeRequest := true

PortForwardRequest := true

CopyFileRequest := true

GetOOMEventRequest := true

GetMetricsRequest := true

GetDiagnosticDataRequest := true

GuestDetailsRequest := true

VolumeStatsRequest := true

UpdateEphemeralMountsRequest := true

UpdateInterfaceRequest := true

UpdateRoutesRequest := true

ListInterfacesRequest := true

ListRoutesRequest := true

AddARPNeighborsRequest := true

GetIPTablesRequest := true

SetIPTablesRequest := true

OnlineCPUMemRequest := true

MemHotplugByProbeRequest := true

ReseedRandomDevRequest := true

SetGuestDateTimeRequest := true

RemoveStaleVirtiofsShareMountsRequest := true

SetPolicyRequest := true
