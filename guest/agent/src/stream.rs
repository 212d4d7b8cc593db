//! One end of a process' standard stream: a pipe, or the master of a pseudo terminal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::watched::watched;

/// A descriptor that is read or written without blocking a thread. Clones share it.
#[derive(Clone)]
pub(crate) struct Stream(Arc<AsyncFd<OwnedFd>>);

impl Stream {
    /// Takes over a pipe's end or a terminal's master. Must be called inside the runtime.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self(Arc::new(watched(fd, Interest::READABLE | Interest::WRITABLE)?)))
    }

    /// Reads at most `limit` bytes, as soon as there are any; none at the end of the stream.
    pub(crate) async fn read(&self, limit: usize) -> io::Result<Vec<u8>> {
        self.0.async_io(Interest::READABLE, |fd| read(fd, limit)).await
    }

    /// What is there now, up to `limit` bytes.
    pub(crate) fn read_ready(&self, limit: usize) -> io::Result<Vec<u8>> {
        match read(self.0.get_ref(), limit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Vec::new()),
            result => result,
        }
    }

    /// Writes all of `data`.
    pub(crate) async fn write(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let write = |fd: &OwnedFd| rustix::io::write(fd, data).map_err(io::Error::from);
            let written = self.0.async_io(Interest::WRITABLE, write).await?;
            data = &data[written..];
        }
        Ok(())
    }

    /// Tells a terminal its size.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(self.0.get_ref(), size)?)
    }
}

fn read(fd: impl AsFd, limit: usize) -> io::Result<Vec<u8>> {
    let mut data = vec![0; limit];
    match rustix::io::read(fd, &mut data) {
        Ok(length) => {
            data.truncate(length);
            Ok(data)
        }
        // A terminal whose last process is gone has ended.
        Err(Errno::IO) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pipe_gives_what_is_there_and_then_its_end() {
        let (reader, writer) = io::pipe().unwrap();
        let (reader, writer) = (Stream::new(reader.into()).unwrap(), Stream::new(writer.into()).unwrap());
        assert_eq!(reader.read_ready(9).unwrap(), b"");
        let reading = tokio::spawn({
            let reader = reader.clone();
            async move { reader.read(3).await.unwrap() }
        });
        writer.write(b"hello").await.unwrap();
        assert_eq!(reading.await.unwrap(), b"hel");
        assert_eq!(reader.read_ready(9).unwrap(), b"lo");
        drop(writer);
        assert_eq!(reader.read(9).await.unwrap(), b"");
    }

    #[tokio::test]
    async fn writing_waits_for_a_slow_reader() {
        let (reader, writer) = io::pipe().unwrap();
        let (reader, writer) = (Stream::new(reader.into()).unwrap(), Stream::new(writer.into()).unwrap());
        let writing = tokio::spawn(async move { writer.write(&vec![7; 1 << 20]).await });
        let mut total = 0;
        loop {
            match reader.read(100_000).await.unwrap().len() {
                0 => break,
                length => total += length,
            }
        }
        writing.await.unwrap().unwrap();
        assert_eq!(total, 1 << 20);
    }

    #[tokio::test]
    async fn writing_to_nobody_is_an_error_and_no_signal() {
        let (reader, writer) = io::pipe().unwrap();
        let writer = Stream::new(writer.into()).unwrap();
        drop(reader);
        assert_eq!(writer.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
