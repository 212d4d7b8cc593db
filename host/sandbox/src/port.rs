//! A port of a guest's loopback interface, where the policy in the guest gives it to the host.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;
use wire::port_forward::{Answer, PORT};

use crate::channel::Channel;
use crate::{Directory, Error, SandboxName};

/// Connects to what listens on `port` of the loopback interface in a running sandbox's guest.
///
/// # Errors
/// [`Error::NotRunning`]; [`Error::Port`] with the guest's reason; [`Error::Connect`] where the guest gives none.
pub async fn connect_port(
    name: &SandboxName,
    port: u16,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, Error> {
    let running = Channel::of_folder(&Directory::path_of(name));
    let channel = running.ok_or_else(|| Error::NotRunning { name: name.to_string() })?;
    let asking = async {
        let mut guest = channel.connect(PORT).await?;
        guest.write_u16(port).await?;
        let answer = Answer::of_byte(guest.read_u8().await?);
        Ok((guest, answer.ok_or(io::ErrorKind::InvalidData)?))
    };
    let asked = timeout(PATIENCE, asking).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    match asked.map_err(Error::Connect)? {
        (guest, Answer::Connected) => Ok(guest),
        (_, answer) => Err(Error::Port { port, answer }),
    }
}

/// For a guest to ask its policy and to connect, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);
