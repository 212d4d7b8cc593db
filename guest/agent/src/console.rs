//! Receives the master of a terminal from the process that made it.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

use crate::helper::socket_pair;

/// A socket on which one terminal is expected.
pub(crate) struct Console(Source);

enum Source {
    /// With the path of its file, which goes with it.
    Listener(UnixListener, PathBuf),
    Pair(UnixStream),
}

impl Console {
    /// Listens in the bundle's folder.
    pub(crate) fn listen(bundle: &Path, name: &str) -> io::Result<Self> {
        let file = format!("{name}.console");
        // A socket's path has at most 107 bytes, a bundle's alone may have more.
        let folder = std::fs::File::open(bundle)?;
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{file}", folder.as_raw_fd()))?;
        Ok(Self(Source::Listener(listener, bundle.join(file))))
    }

    /// A socket without a file, and its other end.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (mine, theirs) = socket_pair()?;
        Ok((Self(Source::Pair(mine)), theirs.into()))
    }

    /// Where the master is to be sent.
    pub(crate) fn path(&self) -> Option<&Path> {
        match &self.0 {
            Source::Listener(_, path) => Some(path),
            Source::Pair(_) => None,
        }
    }

    /// The master, which was sent before this is called.
    pub(crate) async fn master(self) -> io::Result<OwnedFd> {
        let accepted;
        let socket = match &self.0 {
            Source::Listener(listener, _) => {
                accepted = listener.accept().await?.0;
                &accepted
            }
            Source::Pair(socket) => socket,
        };
        socket.async_io(Interest::READABLE, || receive(socket)).await
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(path) = self.path() {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn receive(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut data = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut data)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut received = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    received.next().ok_or_else(|| io::Error::other("no terminal was sent"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::io::{IoSlice, Write};
    use std::os::fd::AsFd;

    #[tokio::test]
    async fn a_descriptor_arrives_whatever_the_length_of_the_folder_s_name() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("a".repeat(128));
        std::fs::create_dir(&bundle).unwrap();
        let console = Console::listen(&bundle, "create").unwrap();
        let path = console.path().unwrap().to_owned();

        let (mut reader, writer) = io::pipe().unwrap();
        let folder = std::fs::File::open(&bundle).unwrap();
        let socket = format!("/proc/self/fd/{}/create.console", folder.as_raw_fd());
        let socket = std::os::unix::net::UnixStream::connect(socket).unwrap();
        let descriptors = [writer.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(&socket, &[IoSlice::new(b"/dev/ptmx")], &mut control, SendFlags::empty()).unwrap();

        let received = console.master().await.unwrap();
        drop(writer);
        std::fs::File::from(received).write_all(b"x").unwrap();
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).unwrap();
        assert_eq!(text, "x");
        assert!(!path.exists());
    }
}
