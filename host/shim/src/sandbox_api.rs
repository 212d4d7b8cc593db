//! containerd's sandbox service: the pod without a container that stands for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use containerd_shim_protos::sandbox_api::*;
use containerd_shim_protos::sandbox_async::{Sandbox, create_sandbox};
use protobuf::MessageField;
use ttrpc::asynchronous::{Service, TtrpcContext};

use crate::Error;
use crate::phase::Exit;
use crate::pod_config::PodConfig;
use crate::request::BootRequest;
use crate::shim::Shim;
use crate::task::timestamp;

/// The service.
pub(crate) fn service(shim: &Arc<Shim>) -> HashMap<String, Service> {
    create_sandbox(Arc::new(SandboxService { shim: Arc::clone(shim), wanted: Mutex::default(), end: Mutex::default() }))
}

struct SandboxService {
    shim: Arc<Shim>,
    /// What was created and is yet to start.
    wanted: Mutex<Option<BootRequest>>,
    end: Mutex<Option<Exit>>,
}

type Answer<T> = ttrpc::Result<T>;

impl SandboxService {
    /// Waits for the end of the pod's machine; the first to see it says when.
    async fn ended(&self) -> Result<Exit, Error> {
        self.shim.pod()?.machine().ended().await;
        Ok(*self.end.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| Exit::now(0)))
    }
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(&self, _: &TtrpcContext, request: CreateSandboxRequest) -> Answer<CreateSandboxResponse> {
        let annotations = request.annotations.into_iter().collect();
        let pod = PodConfig::parse(&request.options.value);
        self.shim.journal.know(&pod.names);
        let wanted = BootRequest::of_pod(&request.sandbox_id, &annotations, &request.netns_path, pod)?;
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Some(wanted);
        Ok(CreateSandboxResponse::new())
    }

    async fn start_sandbox(&self, _: &TtrpcContext, _: StartSandboxRequest) -> Answer<StartSandboxResponse> {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).take();
        let wanted = wanted.ok_or_else(|| Error::State("the sandbox was not created, or is started".to_owned()))?;
        let pod = self.shim.boot(wanted).await.inspect_err(|error| self.shim.failed("start", "", error))?;
        Ok(StartSandboxResponse {
            pid: pod.machine().pid(),
            created_at: MessageField::some(timestamp(SystemTime::now())),
            ..StartSandboxResponse::default()
        })
    }

    async fn platform(&self, _: &TtrpcContext, _: PlatformRequest) -> Answer<PlatformResponse> {
        let mut response = PlatformResponse::new();
        let platform = response.platform.mut_or_insert_default();
        platform.os = "linux".to_owned();
        // Go's name for it.
        platform.architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
        .to_owned();
        Ok(response)
    }

    async fn stop_sandbox(&self, _: &TtrpcContext, _: StopSandboxRequest) -> Answer<StopSandboxResponse> {
        if let Ok(pod) = self.shim.pod() {
            pod.machine().stop().await?;
        }
        Ok(StopSandboxResponse::new())
    }

    async fn wait_sandbox(&self, _: &TtrpcContext, _: WaitSandboxRequest) -> Answer<WaitSandboxResponse> {
        let Exit { status, at } = self.ended().await?;
        Ok(WaitSandboxResponse {
            exit_status: status,
            exited_at: MessageField::some(timestamp(at)),
            ..WaitSandboxResponse::default()
        })
    }

    async fn sandbox_status(&self, _: &TtrpcContext, request: SandboxStatusRequest) -> Answer<SandboxStatusResponse> {
        let mut status = SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            state: NOT_READY.to_owned(),
            created_at: self.shim.up_since().map(timestamp).into(),
            ..SandboxStatusResponse::default()
        };
        if let Ok(pod) = self.shim.pod() {
            status.pid = pod.machine().pid();
            match pod.machine().end() {
                None => status.state = READY.to_owned(),
                Some(_) => status.exited_at = MessageField::some(timestamp(self.ended().await?.at)),
            }
        }
        Ok(status)
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, _: PingRequest) -> Answer<PingResponse> {
        Ok(PingResponse::new())
    }

    async fn shutdown_sandbox(&self, _: &TtrpcContext, _: ShutdownSandboxRequest) -> Answer<ShutdownSandboxResponse> {
        self.shim.shut_down(true).await;
        Ok(ShutdownSandboxResponse::new())
    }
}

const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";
