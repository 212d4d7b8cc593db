//! A stream handed from one thread to another in blocks: whoever makes the bytes does not wait for whoever uses them.

use std::io::{self, BufRead, Read};
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crate::error::{Failure, Stage};

/// Runs `consume` on a thread of its own, on what `source` gives on this one.
///
/// At most [`BLOCKS`] blocks of [`BLOCK`] bytes exist at a time. An error of `source` comes at its place in the stream,
/// and again whenever more is asked for. Once `consume` ends, nothing more is read from `source`.
///
/// # Errors
/// Those of `consume`, and [`Stage::Unpack`] if the system has no thread left.
pub(crate) fn across<T: Send>(
    source: impl Read,
    consume: impl FnOnce(Blocks) -> Result<T, Failure> + Send,
) -> Result<T, Failure> {
    let (full, arriving) = sync_channel(BLOCKS);
    let (returning, empty) = sync_channel(BLOCKS);
    let blocks = Blocks { arriving, returning, block: Block::default(), position: 0, failure: None };
    thread::scope(|scope| {
        let consumer = thread::Builder::new()
            .name("layer".to_owned())
            .spawn_scoped(scope, move || consume(blocks))
            .map_err(|e| Failure::new(Stage::Unpack, format!("no thread can be started: {e}")))?;
        produce(source, &full, &empty);
        drop(full);
        consumer.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// The stream as it arrives on the other thread.
pub(crate) struct Blocks {
    arriving: Receiver<Result<Block, Failure>>,
    returning: SyncSender<Vec<u8>>,
    block: Block,
    position: usize,
    failure: Option<Failure>,
}

/// A buffer of [`BLOCK`] bytes that is filled up to `length`.
#[derive(Default)]
struct Block {
    bytes: Vec<u8>,
    length: usize,
}

impl BufRead for Blocks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.block.length && self.failure.is_none() {
            match self.arriving.recv() {
                Ok(Ok(block)) => {
                    let used = std::mem::replace(&mut self.block, block);
                    self.position = 0;
                    if !used.bytes.is_empty() {
                        // Nobody takes it any more once the stream has ended.
                        self.returning.send(used.bytes).ok();
                    }
                }
                Ok(Err(failure)) => self.failure = Some(failure),
                // The end of the stream.
                Err(_) => {}
            }
        }
        match &self.failure {
            Some(failure) => Err(failure.clone().into()),
            None => Ok(&self.block.bytes[self.position..self.block.length]),
        }
    }

    fn consume(&mut self, count: usize) {
        self.position = self.block.length.min(self.position + count);
    }
}

impl Read for Blocks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

/// Fills blocks until the stream ends or fails, or nobody wants more of it.
fn produce(mut source: impl Read, full: &SyncSender<Result<Block, Failure>>, empty: &Receiver<Vec<u8>>) {
    let mut made = 0;
    loop {
        let reused = if made < BLOCKS { empty.try_recv().ok() } else { empty.recv().ok() };
        let mut bytes = match reused {
            Some(bytes) => bytes,
            None if made < BLOCKS => {
                made += 1;
                vec![0; BLOCK]
            }
            None => return,
        };
        let (length, end) = fill(&mut source, &mut bytes);
        if length > 0 && full.send(Ok(Block { bytes, length })).is_err() {
            return;
        }
        match end {
            None => {}
            Some(Ok(())) => return,
            Some(Err(e)) => {
                full.send(Err(Failure::from_io(e, Stage::Inflate))).ok();
                return;
            }
        }
    }
}

/// Reads until the buffer is full, or says how the stream ended.
fn fill(source: &mut impl Read, buffer: &mut [u8]) -> (usize, Option<io::Result<()>>) {
    let mut length = 0;
    while length < buffer.len() {
        match source.read(&mut buffer[length..]) {
            Ok(0) => return (length, Some(Ok(()))),
            Ok(count) => length += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return (length, Some(Err(e))),
        }
    }
    (length, None)
}

/// Large enough that handing over costs nothing, small enough to stay in a processor's cache.
const BLOCK: usize = 128 << 10;
const BLOCKS: usize = 4;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Gives `left` bytes in pieces of odd lengths, then ends or fails.
    struct Source<'a> {
        left: usize,
        fails: bool,
        read: &'a AtomicUsize,
    }

    impl Read for Source<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.left == 0 && self.fails {
                return Err(Failure::new(Stage::Fetch, "the line broke").into());
            }
            let count = buffer.len().min(self.left).min(10_007);
            for (index, byte) in buffer[..count].iter_mut().enumerate() {
                *byte = ((self.left - index) % 251) as u8;
            }
            self.left -= count;
            self.read.fetch_add(count, Ordering::Relaxed);
            Ok(count)
        }
    }

    fn read_all(mut blocks: Blocks) -> (Vec<u8>, Option<Failure>) {
        let mut bytes = Vec::new();
        let outcome = blocks.read_to_end(&mut bytes);
        (bytes, outcome.err().map(|e| Failure::from_io(e, Stage::Inflate)))
    }

    #[test]
    fn every_byte_arrives_in_order() {
        for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 9 * BLOCK + 5] {
            let read = AtomicUsize::new(0);
            let (bytes, failure) =
                across(Source { left: length, fails: false, read: &read }, |blocks| Ok(read_all(blocks))).unwrap();
            assert_eq!((bytes.len(), failure), (length, None));
            assert!(bytes.iter().enumerate().all(|(index, byte)| *byte == ((length - index) % 251) as u8), "{length}");
        }
    }

    #[test]
    fn a_failure_comes_after_what_was_read_before_it_and_stays() {
        let read = AtomicUsize::new(0);
        let source = Source { left: 3 * BLOCK + 7, fails: true, read: &read };
        let expected = Failure::new(Stage::Fetch, "the line broke");

        let ((bytes, first), second) = across(source, |mut blocks| {
            let mut bytes = Vec::new();
            let first = blocks.by_ref().read_to_end(&mut bytes).unwrap_err();
            Ok(((bytes.len(), Failure::from_io(first, Stage::Inflate)), read_all(blocks).1))
        })
        .unwrap();

        assert_eq!((bytes, first, second), (3 * BLOCK + 7, expected.clone(), Some(expected)));
    }

    #[test]
    fn nothing_is_read_for_nobody() {
        let read = AtomicUsize::new(0);
        let source = Source { left: 100 * BLOCK, fails: false, read: &read };
        let outcome: Result<(), Failure> = across(source, |mut blocks| {
            blocks.fill_buf().map_err(|e| Failure::from_io(e, Stage::Inflate))?;
            Err(Failure::new(Stage::Limit, "enough"))
        });
        assert_eq!(outcome, Err(Failure::new(Stage::Limit, "enough")));
        assert!(read.into_inner() <= (BLOCKS + 2) * BLOCK);
    }
}
