//! Kubernetes' Container Runtime Interface as a kubelet speaks it to containerd: the part of API `runtime.v1` that the
//! laboratory uses, generated from `proto/cri.proto`.

#![forbid(unsafe_code)]

mod generated {
    #![allow(clippy::all, clippy::pedantic, missing_docs)]
    tonic::include_proto!("runtime.v1");
}

pub use generated::image_service_client::ImageServiceClient;
pub use generated::runtime_service_client::RuntimeServiceClient;
pub use generated::*;
