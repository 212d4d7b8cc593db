//! One container of a sandbox: create, start, its streams, its end.

use std::time::Instant;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use wire_ttrpc::agent::{
    CloseStdinRequest, CreateContainerRequest, ExecProcessRequest, ReadStreamRequest, RemoveContainerRequest,
    SignalProcessRequest, StartContainerRequest, Storage, TtyWinResizeRequest, WaitProcessRequest, WriteStreamRequest,
};
use wire_ttrpc::oci;

use crate::{Agent, Error, Event, Timeline};

/// What a container runs.
#[derive(Clone, Debug, Default)]
pub struct ContainerConfig {
    /// The image, pulled inside the guest.
    pub image: String,
    /// The command; empty for the image's own.
    pub args: Vec<String>,
    /// Additional environment, `NAME=value`.
    pub env: Vec<String>,
}

/// What runs in a container beside its first process, as whom and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Execution {
    /// The command.
    pub args: Vec<String>,
    /// Its environment, `NAME=value`.
    pub env: Vec<String>,
    /// Its working directory.
    pub cwd: String,
    /// Its user; none for a container whose creation asked for none, which has its image's.
    pub user: Option<User>,
    /// Whether it and its children get no more rights than it has.
    pub no_new_privileges: bool,
    /// Whether it has a terminal.
    pub terminal: bool,
}

/// Whom a command runs as, in the numbers that its container was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

impl Execution {
    /// A command in the root folder, with an empty environment, that asks for no user.
    pub fn new(args: &[String]) -> Self {
        Self {
            args: args.to_vec(),
            env: Vec::new(),
            cwd: "/".to_owned(),
            user: None,
            no_new_privileges: false,
            terminal: false,
        }
    }

    fn to_wire(&self) -> oci::Process {
        let user = self.user.as_ref().map(|user| oci::User {
            UID: user.uid,
            GID: user.gid,
            AdditionalGids: user.groups.clone(),
            ..oci::User::default()
        });
        oci::Process {
            Terminal: self.terminal,
            User: user.into(),
            Args: self.args.clone(),
            Env: self.env.clone(),
            Cwd: self.cwd.clone(),
            NoNewPrivileges: self.no_new_privileges,
            ..oci::Process::default()
        }
    }
}

/// A container in a guest.
pub struct Container {
    agent: Agent,
    id: String,
    timeline: Timeline,
}

/// One of a process's output streams.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Container {
    /// Creates the container: the guest decides, pulls and unpacks the image, and makes its first process.
    ///
    /// # Errors
    /// [`Error::Denied`] if the guest's policy refuses, [`Error::Guest`] for anything that fails in the guest.
    pub async fn create(agent: &Agent, id: &str, config: &ContainerConfig, timeline: &Timeline) -> Result<Self, Error> {
        let rootfs = format!("/run/kata-containers/{id}/rootfs");
        let storage = Storage {
            driver: "image_guest_pull".to_owned(),
            driver_options: vec!["image_guest_pull={\"metadata\":{}}".to_owned()],
            source: config.image.clone(),
            fstype: "overlay".to_owned(),
            mount_point: rootfs.clone(),
            ..Storage::default()
        };
        let process = oci::Process { Args: config.args.clone(), Env: config.env.clone(), ..oci::Process::default() };
        let spec = oci::Spec {
            Version: "1.1.0".to_owned(),
            Process: Some(process).into(),
            Root: Some(oci::Root { Path: rootfs, ..oci::Root::default() }).into(),
            Linux: Some(oci::Linux::default()).into(),
            ..oci::Spec::default()
        };
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            exec_id: id.to_owned(),
            storages: vec![storage],
            OCI: Some(spec).into(),
            ..CreateContainerRequest::default()
        };
        agent.create_container(request).await?;
        timeline.note(Event::Created, Instant::now());
        Ok(Self { agent: agent.clone(), id: id.to_owned(), timeline: timeline.clone() })
    }

    /// A container that exists already.
    pub fn of(agent: &Agent, id: &str) -> Self {
        Self { agent: agent.clone(), id: id.to_owned(), timeline: Timeline::default() }
    }

    /// Lets the first process run.
    ///
    /// # Errors
    /// As any request.
    pub async fn start(&self) -> Result<(), Error> {
        let request = StartContainerRequest { container_id: self.id.clone(), ..StartContainerRequest::default() };
        self.agent.start_container(request).await?;
        self.timeline.note(Event::Started, Instant::now());
        Ok(())
    }

    /// Starts another process in the container; `exec_id` names it from then on.
    ///
    /// # Errors
    /// [`Error::Denied`] unless the guest's policy allows this command.
    pub async fn exec(&self, exec_id: &str, execution: &Execution) -> Result<(), Error> {
        let request = ExecProcessRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            process: Some(execution.to_wire()).into(),
            ..ExecProcessRequest::default()
        };
        self.agent.exec_process(request).await.map(drop)
    }

    /// Gives a process's terminal a size.
    ///
    /// # Errors
    /// As any request.
    pub async fn resize(&self, exec_id: &str, rows: u16, columns: u16) -> Result<(), Error> {
        let request = TtyWinResizeRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            row: rows.into(),
            column: columns.into(),
            ..TtyWinResizeRequest::default()
        };
        self.agent.tty_win_resize(request).await.map(drop)
    }

    /// Copies a stream to `output` until its end. `exec_id` is the container's own id for its first process.
    ///
    /// # Errors
    /// [`Error::Output`] if `output` fails; as any request otherwise.
    pub async fn copy(&self, exec_id: &str, stream: Stream, mut output: impl AsyncWrite + Unpin) -> Result<(), Error> {
        loop {
            let request = ReadStreamRequest {
                container_id: self.id.clone(),
                exec_id: exec_id.to_owned(),
                len: READ,
                ..ReadStreamRequest::default()
            };
            let answer = match stream {
                Stream::Stdout => self.agent.read_stdout(request).await?,
                Stream::Stderr => self.agent.read_stderr(request).await?,
            };
            if answer.data.is_empty() {
                return output.flush().await.map_err(Error::Output);
            }
            self.timeline.note(Event::FirstOutput, Instant::now());
            output.write_all(&answer.data).await.map_err(Error::Output)?;
            output.flush().await.map_err(Error::Output)?;
        }
    }

    /// Feeds a process's standard input from `input` until its end.
    ///
    /// # Errors
    /// [`Error::Input`] if `input` fails; as any request otherwise.
    pub async fn feed(&self, exec_id: &str, mut input: impl AsyncRead + Unpin) -> Result<(), Error> {
        let (container_id, exec_id) = (self.id.clone(), exec_id.to_owned());
        let mut buffer = vec![0; READ as usize];
        loop {
            let length = input.read(&mut buffer).await.map_err(Error::Input)?;
            if length == 0 {
                let request = CloseStdinRequest { container_id, exec_id, ..CloseStdinRequest::default() };
                return self.agent.close_stdin(request).await.map(drop);
            }
            let request = WriteStreamRequest {
                container_id: container_id.clone(),
                exec_id: exec_id.clone(),
                data: buffer[..length].to_vec(),
                ..WriteStreamRequest::default()
            };
            self.agent.write_stdin(request).await?;
        }
    }

    /// Waits for the end of a process: its exit status, or 128 and the signal that ended it.
    ///
    /// # Errors
    /// As any request.
    pub async fn wait(&self, exec_id: &str) -> Result<i32, Error> {
        let request = WaitProcessRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            ..WaitProcessRequest::default()
        };
        Ok(self.agent.wait_process(request).await?.status)
    }

    /// Sends a signal to a process.
    ///
    /// # Errors
    /// As any request.
    pub async fn signal(&self, exec_id: &str, signal: u32) -> Result<(), Error> {
        let request = SignalProcessRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            signal,
            ..SignalProcessRequest::default()
        };
        self.agent.signal_process(request).await.map(drop)
    }

    /// Removes the container and all that it had in the guest.
    ///
    /// # Errors
    /// As any request.
    pub async fn remove(&self) -> Result<(), Error> {
        let request = RemoveContainerRequest { container_id: self.id.clone(), ..RemoveContainerRequest::default() };
        self.agent.remove_container(request).await.map(drop)
    }

    /// The container's id, which is also that of its first process.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// Below the limit of a ttrpc frame by far.
const READ: u32 = 32 << 10;
