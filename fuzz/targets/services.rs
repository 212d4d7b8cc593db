//! Bodies of requests to the attestation service and the reference value provider, over REST and gRPC.
#![no_main]

use std::sync::{Arc, LazyLock};

use attestation_api::{Serving, grpc_attestation_service, rest_attestation_service};
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use fuzz::Trustee;
use libfuzzer_sys::fuzz_target;
use tower::ServiceExt as _;

static SERVICES: LazyLock<Services> = LazyLock::new(|| {
    let trustee = Trustee::start();
    let serving = Serving { ready: Arc::new(|| true), scheme: "http" };
    let rest = rest_attestation_service(trustee.service.clone(), None, serving.clone());
    let grpc = grpc_attestation_service(trustee.service.clone(), Some(trustee.values.clone()), serving);
    Services { trustee, rest, grpc }
});

struct Services {
    trustee: Trustee,
    rest: Router,
    grpc: Router,
}

// The first byte selects the method, what follows is the body.
fuzz_target!(|bytes: &[u8]| {
    let Some((&method, body)) = bytes.split_first() else { return };
    let method = usize::from(method) % (REST.len() + GRPC.len());
    let (router, path, form, body) = match REST.get(method) {
        Some(path) => (&SERVICES.rest, *path, "application/json", body.to_vec()),
        None => {
            // What precedes each message: that it is not compressed, and its length.
            let length = (body.len() as u32).to_be_bytes();
            let framed = [&[0], &length[..], body].concat();
            (&SERVICES.grpc, GRPC[method - REST.len()], "application/grpc", framed)
        }
    };
    let request = Request::post(path).header("content-type", form).body(Body::from(body)).expect("a request");
    let Ok(_) = SERVICES.trustee.run(router.clone().oneshot(request));
});

const REST: [&str; 3] = ["/attestation", "/policy", "/challenge"];
const GRPC: [&str; 5] = [
    "/attestation.AttestationService/AttestationEvaluate",
    "/attestation.AttestationService/SetAttestationPolicy",
    "/attestation.AttestationService/GetAttestationChallenge",
    "/reference.ReferenceValueProviderService/RegisterReferenceValue",
    "/reference.ReferenceValueProviderService/QueryReferenceValue",
];
