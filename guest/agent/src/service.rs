//! The agent's face on the wire: each request is put to the policy first, then carried out.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use protobuf::well_known_types::empty::Empty;
use protobuf::{EnumOrUnknown, MessageField};
use rustix::process::Signal;
use ttrpc::r#async::{Server, TtrpcContext};
use wire_ttrpc::agent::*;
use wire_ttrpc::health::{
    CheckRequest, HealthCheckResponse, VersionCheckResponse, health_check_response::ServingStatus,
};
use wire_ttrpc::types::Interface;
use wire_ttrpc::{agent_ttrpc, health_ttrpc};

use crate::agent::{Agent, AgentEvent, Error};
use crate::fault::Fault;
use crate::network::Network;
use crate::policy::Policy;
use crate::request::Gated;
use crate::{guest, metrics, secrets, spec, stats};

impl Agent {
    /// Serves `grpc.AgentService` and `grpc.Health` until the future is dropped.
    ///
    /// `address` is `vsock://-1:1024` in a guest, or `unix://` and a path.
    ///
    /// # Errors
    /// [`Error::Listen`] where nothing can be listened on.
    pub async fn serve(self: Arc<Self>, address: &str) -> Result<(), Error> {
        let failed = |error| Error::Listen(address.to_owned(), error);
        let mut server = Server::new()
            .bind(address)
            .map_err(failed)?
            .register_service(agent_ttrpc::create_agent_service(Arc::new(Service(Arc::clone(&self)))))
            .register_service(health_ttrpc::create_health(Arc::new(Health(Arc::clone(&self)))));
        server.start().await.map_err(failed)?;
        self.announce(AgentEvent::Listening);
        std::future::pending::<()>().await;
        drop(server);
        Ok(())
    }
}

struct Service(Arc<Agent>);

struct Health(Arc<Agent>);

type Answer<T> = ttrpc::Result<T>;

/// Methods that this guest doesn't have. The policy still comes first: what it denies stays denied.
///
/// Written the way `async_trait` expands methods, since it does so before this macro is expanded.
macro_rules! not_implemented {
    ($($method:ident($request:ident) -> $response:ty),* $(,)?) => {
        $(fn $method<'a, 'b, 'c>(&'a self, _: &'b TtrpcContext, request: $request) -> Pending<'c, $response>
        where
            'a: 'c,
            'b: 'c,
            Self: 'c,
        {
            Box::pin(async move {
                self.0.admit(&request).await?;
                Err(Fault::Unimplemented($request::NAME).into())
            })
        })*
    };
}

type Pending<'a, T> = Pin<Box<dyn Future<Output = Answer<T>> + Send + 'a>>;

#[async_trait]
impl agent_ttrpc::AgentService for Service {
    async fn create_sandbox(&self, _: &TtrpcContext, request: CreateSandboxRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        // A task of its own: where the caller gives up, what was begun is still finished or undone.
        let agent = Arc::clone(&self.0);
        tokio::spawn(async move { agent.create_sandbox(&request).await }).await.map_err(Fault::from)??;
        Ok(Empty::new())
    }

    async fn destroy_sandbox(&self, _: &TtrpcContext, request: DestroySandboxRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        self.0.destroy_sandbox().await?;
        Ok(Empty::new())
    }

    async fn create_container(&self, _: &TtrpcContext, request: CreateContainerRequest) -> Answer<Empty> {
        // Decided on inside, where the image's digest is known.
        self.0.create_container(request).await?;
        Ok(Empty::new())
    }

    async fn start_container(&self, _: &TtrpcContext, request: StartContainerRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        self.0.start_container(&request.container_id)?;
        Ok(Empty::new())
    }

    async fn remove_container(&self, _: &TtrpcContext, request: RemoveContainerRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        let limit = (request.timeout > 0).then(|| Duration::from_secs(request.timeout.into()));
        self.0.remove_container(&request.container_id, limit).await?;
        Ok(Empty::new())
    }

    async fn exec_process(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        self.0.all_drivers().await;
        let container = self.0.container(&request.container_id)?;
        let mut request = request;
        if let Some(process) = request.process.as_mut() {
            // Only here, after the decision: what the policy and its log see is what the host sent.
            secrets::open_all(&mut process.Env, self.0.secrets.as_deref()).await.map_err(Fault::from)?;
        }
        // A task of its own: where the caller gives up, the command is still watched over.
        tokio::spawn(async move { container.exec(&request).await }).await.map_err(Fault::from)??;
        Ok(Empty::new())
    }

    async fn get_metrics(&self, _: &TtrpcContext, request: GetMetricsRequest) -> Answer<Metrics> {
        self.0.admit(&request).await?;
        let metrics = metrics::of_this_process().map_err(|e| Fault::Io("metrics can't be read", e))?;
        Ok(Metrics { metrics, ..Default::default() })
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        let number = i32::try_from(request.signal).unwrap_or_default();
        let signal =
            Signal::from_named_raw(number).ok_or(Fault::Invalid("no such signal; next: use one from 1 to 31"))?;
        self.0.container(&request.container_id)?.signal(&request.exec_id, signal)?;
        Ok(Empty::new())
    }

    async fn wait_process(&self, _: &TtrpcContext, request: WaitProcessRequest) -> Answer<WaitProcessResponse> {
        self.0.admit(&request).await?;
        let container = self.0.container(&request.container_id)?;
        let status = container.process(&request.exec_id)?.ended().await;
        Ok(WaitProcessResponse { status, ..Default::default() })
    }

    async fn write_stdin(&self, _: &TtrpcContext, request: WriteStreamRequest) -> Answer<WriteStreamResponse> {
        self.0.admit(&request).await?;
        let container = self.0.container(&request.container_id)?;
        let written = container.process(&request.exec_id)?.write_stdin(&request.data).await;
        written.map_err(|e| Fault::Io("standard input can't be written", e))?;
        let len = u32::try_from(request.data.len()).unwrap_or(u32::MAX);
        Ok(WriteStreamResponse { len, ..Default::default() })
    }

    async fn read_stdout(&self, _: &TtrpcContext, request: ReadStreamRequest) -> Answer<ReadStreamResponse> {
        let Some(limit) = self.admit_reading(&request).await? else { return Ok(ReadStreamResponse::new()) };
        let container = self.0.container(&request.container_id)?;
        let data = container.process(&request.exec_id)?.read_stdout(limit).await;
        let data = data.map_err(|e| Fault::Io("standard output can't be read", e))?;
        Ok(ReadStreamResponse { data, ..Default::default() })
    }

    async fn read_stderr(&self, _: &TtrpcContext, request: ReadStreamRequest) -> Answer<ReadStreamResponse> {
        let Some(limit) = self.admit_reading(&request).await? else { return Ok(ReadStreamResponse::new()) };
        let container = self.0.container(&request.container_id)?;
        let data = container.process(&request.exec_id)?.read_stderr(limit).await;
        let data = data.map_err(|e| Fault::Io("standard error can't be read", e))?;
        Ok(ReadStreamResponse { data, ..Default::default() })
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: CloseStdinRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        let container = self.0.container(&request.container_id)?;
        let closed = container.process(&request.exec_id)?.close_stdin().await;
        closed.map_err(|e| Fault::Io("standard input can't be closed", e))?;
        Ok(Empty::new())
    }

    async fn tty_win_resize(&self, _: &TtrpcContext, request: TtyWinResizeRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        let size = |value: u32| {
            u16::try_from(value).map_err(|_| Fault::Invalid("no terminal is that large; next: use at most 65535"))
        };
        let container = self.0.container(&request.container_id)?;
        let resized = container.process(&request.exec_id)?.resize(size(request.row)?, size(request.column)?);
        if !resized.map_err(|e| Fault::Io("terminal can't be resized", e))? {
            return Err(Fault::State("the process has no terminal".to_owned()).into());
        }
        Ok(Empty::new())
    }

    async fn get_guest_details(&self, _: &TtrpcContext, request: GuestDetailsRequest) -> Answer<GuestDetailsResponse> {
        self.0.admit(&request).await?;
        let details = AgentDetails {
            version: self.0.version.clone(),
            init_daemon: std::process::id() == 1,
            device_handlers: DISKS.map(str::to_owned).to_vec(),
            storage_handlers: ["ephemeral", "local", spec::GUEST_PULL]
                .into_iter()
                .chain(DISKS)
                .map(str::to_owned)
                .collect(),
            ..Default::default()
        };
        let block = if request.mem_block_size { memory_block_size() } else { 0 };
        Ok(GuestDetailsResponse {
            mem_block_size_bytes: block,
            agent_details: MessageField::some(details),
            ..Default::default()
        })
    }

    async fn set_policy(&self, _: &TtrpcContext, request: SetPolicyRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        let parsed = tokio::task::spawn_blocking(move || Policy::parse(&request.policy)).await.map_err(Fault::from)?;
        self.0.policy.replace(parsed.map_err(Fault::from)?);
        self.0.announce(AgentEvent::PolicyReplaced);
        Ok(Empty::new())
    }

    async fn update_interface(&self, _: &TtrpcContext, request: UpdateInterfaceRequest) -> Answer<Interface> {
        self.0.admit(&request).await?;
        self.0.network_drivers().await;
        let interface =
            request.interface.into_option().ok_or(Fault::Invalid("the request has no interface; next: set it"))?;
        if interface.IPAddresses.len() > MAX_ADDRESSES {
            return Err(Fault::Invalid("the interface has more than 64 addresses; next: leave some out").into());
        }
        Network::open().map_err(Fault::from)?.update_interface(&interface).await.map_err(Fault::from)?;
        Ok(interface)
    }

    async fn update_routes(&self, _: &TtrpcContext, request: UpdateRoutesRequest) -> Answer<Routes> {
        self.0.admit(&request).await?;
        self.0.network_drivers().await;
        let wanted = request.routes.into_option().unwrap_or_default();
        if wanted.Routes.len() > MAX_ROUTES {
            return Err(Fault::Invalid("there are more than 256 routes; next: leave some out").into());
        }
        let network = Network::open().map_err(Fault::from)?;
        network.update_routes(&wanted.Routes).await.map_err(Fault::from)?;
        let routes = network.routes().await.map_err(Fault::from)?;
        Ok(Routes { Routes: routes, ..Default::default() })
    }

    async fn list_interfaces(&self, _: &TtrpcContext, request: ListInterfacesRequest) -> Answer<Interfaces> {
        self.0.admit(&request).await?;
        self.0.network_drivers().await;
        let interfaces = Network::open().map_err(Fault::from)?.interfaces().await.map_err(Fault::from)?;
        Ok(Interfaces { Interfaces: interfaces, ..Default::default() })
    }

    async fn list_routes(&self, _: &TtrpcContext, request: ListRoutesRequest) -> Answer<Routes> {
        self.0.admit(&request).await?;
        self.0.network_drivers().await;
        let routes = Network::open().map_err(Fault::from)?.routes().await.map_err(Fault::from)?;
        Ok(Routes { Routes: routes, ..Default::default() })
    }

    async fn copy_file(&self, _: &TtrpcContext, request: CopyFileRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        self.0.copy_file(request).await?;
        Ok(Empty::new())
    }

    async fn update_container(&self, _: &TtrpcContext, request: UpdateContainerRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        let container = self.0.container(&request.container_id)?;
        container
            .cgroup()
            .limit(request.resources.get_or_default())
            .map_err(|e| Fault::Io("limits can't be changed", e))?;
        Ok(Empty::new())
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        request: StatsContainerRequest,
    ) -> Answer<StatsContainerResponse> {
        self.0.admit(&request).await?;
        let container = self.0.container(&request.container_id)?;
        let network = std::fs::read_to_string("/proc/net/dev").map_err(|e| Fault::Io("network can't be read", e))?;
        Ok(StatsContainerResponse {
            cgroup_stats: MessageField::some(stats::of_group(container.cgroup().path())),
            network_stats: stats::of_network(&network),
            ..Default::default()
        })
    }

    async fn pause_container(&self, _: &TtrpcContext, request: PauseContainerRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        let container = self.0.container(&request.container_id)?;
        container.cgroup().freeze(true).await.map_err(|e| Fault::Io("container can't be paused", e))?;
        Ok(Empty::new())
    }

    async fn resume_container(&self, _: &TtrpcContext, request: ResumeContainerRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        let container = self.0.container(&request.container_id)?;
        container.cgroup().freeze(false).await.map_err(|e| Fault::Io("container can't be resumed", e))?;
        Ok(Empty::new())
    }

    async fn get_oom_event(&self, _: &TtrpcContext, request: GetOOMEventRequest) -> Answer<OOMEvent> {
        self.0.admit(&request).await?;
        Ok(OOMEvent { container_id: self.0.oom.next().await, ..Default::default() })
    }

    async fn get_diagnostic_data(
        &self,
        _: &TtrpcContext,
        request: GetDiagnosticDataRequest,
    ) -> Answer<GetDiagnosticDataResponse> {
        self.0.admit(&request).await?;
        if request.log_type != "termination_log" {
            return Err(Fault::Invalid("there is no such log; next: ask for termination_log").into());
        }
        let container = self.0.container(&request.container_id)?;
        let data = container.termination_message().map_err(|e| Fault::Io("termination log can't be read", e))?;
        Ok(GetDiagnosticDataResponse { data, ..Default::default() })
    }

    async fn update_ephemeral_mounts(&self, _: &TtrpcContext, request: UpdateEphemeralMountsRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        self.0.volumes.resize(&request.storages).map_err(Fault::from)?;
        Ok(Empty::new())
    }

    async fn remove_stale_virtiofs_share_mounts(
        &self,
        _: &TtrpcContext,
        request: RemoveStaleVirtiofsShareMountsRequest,
    ) -> Answer<Empty> {
        // There are none: this guest mounts no file system of the host.
        self.0.admit(&request).await?;
        Ok(Empty::new())
    }

    async fn add_arp_neighbors(&self, _: &TtrpcContext, request: AddARPNeighborsRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        self.0.network_drivers().await;
        let neighbors = request.neighbors.into_option().unwrap_or_default().ARPNeighbors;
        if neighbors.len() > MAX_ROUTES {
            return Err(Fault::Invalid("there are more than 256 neighbours; next: leave some out").into());
        }
        Network::open().map_err(Fault::from)?.add_neighbors(&neighbors).await.map_err(Fault::from)?;
        Ok(Empty::new())
    }

    async fn get_ip_tables(&self, _: &TtrpcContext, request: GetIPTablesRequest) -> Answer<GetIPTablesResponse> {
        self.0.admit(&request).await?;
        let data = guest::packet_filter(request.is_ipv6).await.map_err(Fault::from)?;
        Ok(GetIPTablesResponse { data, ..Default::default() })
    }

    async fn set_ip_tables(&self, _: &TtrpcContext, request: SetIPTablesRequest) -> Answer<SetIPTablesResponse> {
        self.0.admit(&request).await?;
        let data = guest::set_packet_filter(request.is_ipv6, &request.data).await.map_err(Fault::from)?;
        Ok(SetIPTablesResponse { data, ..Default::default() })
    }

    async fn online_cpu_mem(&self, _: &TtrpcContext, request: OnlineCPUMemRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        let wait = request.wait.then_some(request.nb_cpus);
        guest::online(Path::new("/sys"), wait, request.cpu_only).await.map_err(Fault::from)?;
        Ok(Empty::new())
    }

    async fn mem_hotplug_by_probe(&self, _: &TtrpcContext, request: MemHotplugByProbeRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        guest::probe_memory(&request.memHotplugProbeAddr).map_err(Fault::from)?;
        Ok(Empty::new())
    }

    async fn reseed_random_dev(&self, _: &TtrpcContext, request: ReseedRandomDevRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        guest::mix_random(&request.data).map_err(Fault::from)?;
        Ok(Empty::new())
    }

    async fn set_guest_date_time(&self, _: &TtrpcContext, request: SetGuestDateTimeRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        guest::set_time(request.Sec, request.Usec).map_err(Fault::from)?;
        Ok(Empty::new())
    }

    async fn get_volume_stats(&self, _: &TtrpcContext, request: VolumeStatsRequest) -> Answer<VolumeStatsResponse> {
        self.0.admit(&request).await?;
        let path = Path::new(&request.volume_guest_path);
        if !self.0.volumes.paths().iter().any(|volume| volume == path) {
            return Err(Fault::NotFound("the volume".to_owned()).into());
        }
        let usage = stats::of_file_system(path).map_err(|e| Fault::Io("volume can't be measured", e))?;
        let condition = VolumeCondition { abnormal: false, message: "OK".to_owned(), ..Default::default() };
        Ok(VolumeStatsResponse { usage, volume_condition: MessageField::some(condition), ..Default::default() })
    }

    async fn add_swap(&self, _: &TtrpcContext, request: AddSwapRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        Err(NO_SWAP.into())
    }

    async fn add_swap_path(&self, _: &TtrpcContext, request: AddSwapPathRequest) -> Answer<Empty> {
        self.0.admit(&request).await?;
        Err(NO_SWAP.into())
    }

    not_implemented!(
        mem_agent_memcg_set(MemAgentMemcgConfig) -> Empty,
        mem_agent_compact_set(MemAgentCompactConfig) -> Empty,
        resize_volume(ResizeVolumeRequest) -> Empty,
    );
}

impl Service {
    /// How much may be read; none where the policy keeps output inside. Callers take that for the end of the stream.
    async fn admit_reading(&self, request: &ReadStreamRequest) -> Result<Option<usize>, Fault> {
        match self.0.admit(request).await {
            Ok(()) => Ok(Some(usize::try_from(request.len).unwrap_or(usize::MAX))),
            Err(Fault::Denied(_)) => Ok(None),
            Err(fault) => Err(fault),
        }
    }
}

#[async_trait]
impl health_ttrpc::Health for Health {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> Answer<HealthCheckResponse> {
        self.0.note_request();
        Ok(HealthCheckResponse { status: EnumOrUnknown::new(ServingStatus::SERVING), ..Default::default() })
    }

    async fn version(&self, _: &TtrpcContext, _: CheckRequest) -> Answer<VersionCheckResponse> {
        self.0.note_request();
        Ok(VersionCheckResponse {
            grpc_version: API_VERSION.into(),
            agent_version: self.0.version.clone(),
            ..Default::default()
        })
    }
}

fn memory_block_size() -> u64 {
    let text = std::fs::read_to_string("/sys/devices/system/memory/block_size_bytes").unwrap_or_default();
    u64::from_str_radix(text.trim(), 16).unwrap_or(0)
}

/// The version of the agent's protocol, as Kata's agent states it.
const API_VERSION: &str = "0.0.1";
/// The kinds of disks that are found by their address.
pub(crate) const DISKS: [&str; 4] = ["blk", "scsi", "mmioblk", "nvdimm"];
/// What the guest's kernel swaps out would lie on the host in the clear.
const NO_SWAP: Fault =
    Fault::Refused("this guest never swaps to a disk of the host, which could read it; next: give it memory");
const MAX_ADDRESSES: usize = 64;
const MAX_ROUTES: usize = 256;
