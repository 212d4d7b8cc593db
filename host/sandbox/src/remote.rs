//! A sandbox whose machine an adaptor makes elsewhere: a peer pod.
//!
//! The adaptor gives the machine the addresses of the pod's network itself, so the guest is told of none.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hypervisor::remote::{Adaptor, RemoteVmConfig};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::sleep;
use ttrpc::asynchronous::transport::Socket;

use crate::channel;
use crate::footprint::Footprint;
use crate::guest::{self, GuestNetwork};
use crate::machine::Machine;
use crate::{Agent, Directory, Error, Event, PodNetwork, Sandbox, SandboxConfig};

/// A machine that is to be made elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteMachine {
    /// Who makes it.
    pub adaptor: Adaptor,
    /// What it shall be; processors, memory, initdata and network are the sandbox's.
    pub vm: RemoteVmConfig,
}

/// A machine elsewhere, as this host knows it.
pub(crate) struct Remote {
    order: Order,
    hung_up: watch::Receiver<bool>,
}

impl Remote {
    /// Waits until the agent's connection is closed.
    pub(crate) async fn hung_up(&self) {
        // Whoever would have told is gone with the connection.
        let _ = self.hung_up.clone().wait_for(|hung_up| *hung_up).await;
    }

    /// Ends it.
    pub(crate) async fn stop(&self) -> Result<(), Error> {
        Ok(self.order.adaptor.stop(&self.order.id).await?)
    }
}

impl Sandbox {
    /// Has the machine made, and sets up its sandbox.
    ///
    /// # Errors
    /// Any of [`Error`]; nothing is left behind if the adaptor can be told so.
    pub(crate) async fn start_elsewhere(mut config: SandboxConfig, machine: RemoteMachine) -> Result<Self, Error> {
        let timeline = config.timeline.clone();
        timeline.note(Event::Asked, Instant::now());
        let PodNetwork::Namespace(namespace) = &config.network else { return Err(Error::NetworkElsewhere) };
        let vm = RemoteVmConfig {
            vcpus: config.vcpus,
            memory_mib: config.memory_mib,
            initdata: config.initdata.as_ref().map(|it| it.document.text().to_owned()).unwrap_or_default(),
            network_namespace: namespace.clone(),
            ..machine.vm
        };
        let mut footprint = Footprint::of(Directory::create(&config.name)?);
        if let Some(opened) = config.opened.take() {
            opened(footprint.directory.path());
        }
        let order = Order { adaptor: machine.adaptor, id: config.name.to_string() };
        let version = order.adaptor.version().await?;
        tracing::info!(socket = %order.adaptor.socket.display(), %version, "the adaptor answers");
        // From here on there may be something elsewhere, whatever becomes of this process.
        footprint.order(&order)?;
        let made = async {
            let (agent, hung_up) = make(&order, &vm, &footprint.directory).await?;
            timeline.note(Event::FirstAnswer, Instant::now());
            guest::set_up(&agent, &config, GuestNetwork::none()).await?;
            Ok((agent, hung_up))
        };
        timeline.note(Event::VmmStart, Instant::now());
        match made.await {
            Ok((agent, hung_up)) => {
                let machine = Machine::Elsewhere(Remote { order, hung_up });
                Ok(Self::new(agent, timeline, machine, footprint))
            }
            Err(error) => {
                match order.adaptor.stop(&order.id).await {
                    Ok(()) => footprint.fulfilled(),
                    Err(error) => tracing::error!(%error, "a machine elsewhere may be left"),
                }
                Err(error)
            }
        }
    }
}

/// Makes the machine, starts it and gets its agent's first answer.
async fn make(
    order: &Order,
    vm: &RemoteVmConfig,
    directory: &Directory,
) -> Result<(Agent, watch::Receiver<bool>), Error> {
    let socket = order.adaptor.create(&order.id, vm).await?;
    let link = directory.path().join(channel::AGENT);
    std::os::unix::fs::symlink(&socket, &link).map_err(|source| Error::Directory { path: link, source })?;
    order.adaptor.start(&order.id).await?;
    let (stream, hung_up) = Watched::new(connect(&socket).await?);
    let agent = Agent::over(Socket::new(stream));
    agent.check().await?;
    Ok((agent, hung_up))
}

/// Connects to the agent's socket, which some adaptors make a moment after they have said that the machine is started.
async fn connect(socket: &Path) -> Result<UnixStream, Error> {
    let deadline = Instant::now() + SOCKET_LIMIT;
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) if absent(&error) && Instant::now() < deadline => sleep(PAUSE).await,
            Err(source) => return Err(Error::AgentSocket { path: socket.to_owned(), source }),
        }
    }
}

fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// What an adaptor was asked for, as it is on record.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Order {
    pub(crate) adaptor: Adaptor,
    /// The machine's name.
    pub(crate) id: String,
}

impl Order {
    /// Ends the machine, for whoever is in no runtime or must not leave it.
    pub(crate) fn stop_blocking(&self) -> Result<(), Error> {
        let stop = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Connect)?;
            Ok(runtime.block_on(self.adaptor.stop(&self.id))?)
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("adaptor".to_owned()).spawn_scoped(scope, stop);
            let outcome = thread.map_err(Error::Connect)?.join();
            outcome.unwrap_or_else(|_| Err(Error::Connect(io::Error::other("its thread panicked"))))
        })
    }
}

/// A connection whose end is told: the other side's, and its owner's.
struct Watched {
    stream: UnixStream,
    ended: watch::Sender<bool>,
}

impl Watched {
    fn new(stream: UnixStream) -> (Self, watch::Receiver<bool>) {
        let (ended, end) = watch::channel(false);
        (Self { stream, ended }, end)
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (before, room) = (buf.filled().len(), buf.remaining());
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        if read.is_err() || (room > 0 && buf.filled().len() == before) {
            self.ended.send_replace(true);
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// As long as upstream's shim tries.
const SOCKET_LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use async_trait::async_trait;
    use tokio::sync::mpsc;
    use ttrpc::asynchronous::{Server, TtrpcContext};
    use wire_ttrpc::remote_hypervisor::*;
    use wire_ttrpc::remote_hypervisor_ttrpc::{Hypervisor, create_hypervisor};

    use super::*;
    use crate::{GuestFiles, SandboxName};

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_ordered_is_on_record_before_it_is_and_ended_when_that_fails() {
        let mut lab = Lab::new("fails", Some("no quota")).await;

        let error = Sandbox::start(lab.config()).await.err().unwrap();

        assert!(error.to_string().contains("StartVM was refused: no quota; next:"), "{error}");
        let heard: Vec<_> = std::iter::from_fn(|| lab.heard.try_recv().ok()).collect();
        let (name, record) = (&lab.name, "with its record");
        let expected = [
            "Version ",
            &format!("CreateVM {name} {record}"),
            &format!("StartVM {name} {record}"),
            &format!("StopVM {name} {record}"),
        ];
        assert_eq!(heard, expected.map(str::trim));
        assert!(!Directory::path_of(&lab.name).exists());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_killed_owner_had_ordered_is_ended_by_whoever_cleans_up() {
        let mut lab = Lab::new("left", None).await;
        let folder = Directory::path_of(&lab.name);
        fs::create_dir_all(&folder).unwrap();
        let order = Order { adaptor: lab.adaptor.clone(), id: lab.name.to_string() };
        fs::write(folder.join("record.json"), serde_json::json!({"order": order}).to_string()).unwrap();

        crate::clean_up(&lab.name).unwrap();

        assert_eq!(lab.heard.recv().await.unwrap(), format!("StopVM {} with its record", lab.name));
        assert!(!folder.exists());
    }

    #[tokio::test]
    async fn the_end_of_a_connection_is_told_whoever_ends_it() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (near, mut far) = UnixStream::pair().unwrap();
        let (mut near, mut end) = Watched::new(near);
        far.write_all(b"x").await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), b'x');
        assert!(!*end.borrow());
        drop(far);
        assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
        assert!(*end.wait_for(|ended| *ended).await.unwrap());
    }

    /// An adaptor that says what it hears and whether the sandbox was on record by then.
    struct Lab {
        name: SandboxName,
        adaptor: Adaptor,
        heard: mpsc::UnboundedReceiver<String>,
        _server: Server,
        _folder: tempfile::TempDir,
    }

    impl Lab {
        async fn new(name: &str, refusal: Option<&'static str>) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let name = SandboxName::parse(&format!("test-remote-{name}-{}", std::process::id())).unwrap();
            let adaptor = Adaptor { socket: folder.path().join("socket"), limit: Duration::from_secs(60) };
            let (tell, heard) = mpsc::unbounded_channel();
            let record = Directory::path_of(&name).join("record.json");
            let service = create_hypervisor(Arc::new(Ear { tell, record, refusal }));
            let address = format!("unix://{}", adaptor.socket.display());
            let mut server = Server::new().bind(&address).unwrap().register_service(service);
            server.start().await.unwrap();
            Self { name, adaptor, heard, _server: server, _folder: folder }
        }

        fn config(&self) -> SandboxConfig {
            let guest = GuestFiles { kernel: "".into(), initramfs: "".into(), command_line: String::new() };
            SandboxConfig {
                network: PodNetwork::Namespace("/run/netns/x".into()),
                remote: Some(RemoteMachine { adaptor: self.adaptor.clone(), vm: RemoteVmConfig::default() }),
                ..SandboxConfig::new(self.name.clone(), guest)
            }
        }
    }

    struct Ear {
        tell: mpsc::UnboundedSender<String>,
        record: std::path::PathBuf,
        refusal: Option<&'static str>,
    }

    impl Ear {
        fn hear(&self, request: &str, id: &str) {
            let ordered = fs::read_to_string(&self.record).is_ok_and(|text| text.contains("\"order\":{"));
            let record = if ordered { "with its record" } else { "" };
            self.tell.send(format!("{request} {id} {record}").trim().to_owned()).unwrap();
        }
    }

    #[async_trait]
    impl Hypervisor for Ear {
        async fn version(&self, _: &TtrpcContext, _: VersionRequest) -> ttrpc::Result<VersionResponse> {
            self.hear("Version", "");
            Ok(VersionResponse::new())
        }

        async fn create_vm(&self, _: &TtrpcContext, request: CreateVMRequest) -> ttrpc::Result<CreateVMResponse> {
            self.hear("CreateVM", &request.id);
            Ok(CreateVMResponse { agentSocketPath: "/no/agent".into(), ..Default::default() })
        }

        async fn start_vm(&self, _: &TtrpcContext, request: StartVMRequest) -> ttrpc::Result<StartVMResponse> {
            self.hear("StartVM", &request.id);
            match self.refusal {
                Some(why) => Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::UNKNOWN, why))),
                None => Ok(StartVMResponse::new()),
            }
        }

        async fn stop_vm(&self, _: &TtrpcContext, request: StopVMRequest) -> ttrpc::Result<StopVMResponse> {
            self.hear("StopVM", &request.id);
            Ok(StopVMResponse::new())
        }
    }
}
