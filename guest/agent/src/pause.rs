//! Which request is for a pod's sandbox container: that is a process of the guest's own.

use wire_ttrpc::agent::CreateContainerRequest;

/// Whether the request is for a pod's sandbox container. Nothing else of it counts then but the pod's parameters.
pub(crate) fn is_asked_for(request: &CreateContainerRequest) -> bool {
    request.OCI.Annotations.get(CONTAINER_TYPE).is_some_and(|kind| kind == "pod_sandbox")
}

/// What Kata's shim calls the kind of a container.
const CONTAINER_TYPE: &str = "io.katacontainers.pkg.oci.container_type";

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::MessageField;
    use wire_ttrpc::oci;

    #[test]
    fn only_the_shim_s_annotation_makes_a_sandbox_container() {
        let request = |kind: &str| {
            let mut spec = oci::Spec::new();
            spec.Annotations.insert(CONTAINER_TYPE.to_owned(), kind.to_owned());
            CreateContainerRequest { OCI: MessageField::some(spec), ..Default::default() }
        };
        assert!(is_asked_for(&request("pod_sandbox")));
        for other in ["pod_container", "single_container", "", "POD_SANDBOX"] {
            assert!(!is_asked_for(&request(other)), "{other:?}");
        }
        assert!(!is_asked_for(&CreateContainerRequest::new()));
    }
}
