//! zstd streams whose windows are bounded all together, however many layers there are.
//!
//! A decoder keeps what its frame may refer back to, which is 8 MiB at zstd's usual levels, and would take twice that
//! while its buffer grows. So each buffer is made in its final size, goes from stream to stream instead of back to
//! the allocator, and a stream waits while the others hold too much.

use std::io::{self, BufRead, Read};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// The memory for windows that all streams share.
pub(crate) struct Windows {
    state: Mutex<State>,
    returned: Condvar,
}

struct State {
    free: u64,
    /// Those whose window is [`USUAL`] or less, for the next stream. None is kept once there is no stream.
    idle: Vec<FrameDecoder>,
    streams: usize,
}

impl Windows {
    /// Waits until there is memory for a window, and lends a decoder.
    ///
    /// A window beyond [`BUDGET`] has it all for itself.
    fn lend(&self, window: u64) -> Lent<'_> {
        // The decoder's buffer is a power of two.
        let share = window.next_power_of_two().min(BUDGET);
        let mut state = self.state();
        while state.free < share {
            state = self.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.free -= share;
        let idle = match share {
            ..=USUAL => state.idle.pop(),
            _ => {
                state.idle.clear();
                None
            }
        };
        Lent { windows: self, decoder: idle.unwrap_or_else(new_decoder), share }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Windows {
    fn default() -> Self {
        Self { state: Mutex::new(State { free: BUDGET, idle: Vec::new(), streams: 0 }), returned: Condvar::new() }
    }
}

/// A decoder with its share of the budget.
struct Lent<'w> {
    windows: &'w Windows,
    decoder: FrameDecoder,
    share: u64,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let decoder = std::mem::take(&mut self.decoder);
        let mut state = self.windows.state();
        state.free += self.share;
        if self.share <= USUAL {
            state.idle.push(decoder);
        }
        drop(state);
        self.windows.returned.notify_all();
    }
}

/// All frames of a zstd stream, skippable ones left out.
pub(crate) struct Zstd<'w, R> {
    source: R,
    windows: &'w Windows,
    lent: Option<Lent<'w>>,
    in_frame: bool,
}

impl<'w, R: BufRead> Zstd<'w, R> {
    /// Reads a stream; what it needs for its window is taken from `windows` once its header has come.
    pub(crate) fn new(source: R, windows: &'w Windows) -> Self {
        windows.state().streams += 1;
        Self { source, windows, lent: None, in_frame: false }
    }

    /// Begins the next frame; false at the end of the stream.
    fn begin(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            let mut header = Vec::new();
            match window(&mut Recorded { source: &mut self.source, record: &mut header }) {
                Ok(window) => {
                    let header = io::Read::chain(&header[..], &mut self.source);
                    let lent = match &mut self.lent {
                        Some(lent) if window <= lent.share => lent,
                        lent => {
                            // Two streams that keep what they have while they wait for more would wait for ever.
                            *lent = None;
                            lent.insert(self.windows.lend(window))
                        }
                    };
                    lent.decoder.init(header).map_err(io::Error::other)?;
                    self.in_frame = true;
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    io::copy(&mut (&mut self.source).take(length.into()), &mut io::sink())?;
                }
                Err(e) => return Err(io::Error::other(e)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Zstd<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.in_frame && !self.begin()? {
                return Ok(0);
            }
            let Some(Lent { decoder, .. }) = &mut self.lent else { return Ok(0) };
            while decoder.can_collect() == 0 && !decoder.is_finished() {
                decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(io::Error::other)?;
            }
            let count = decoder.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            self.in_frame = false;
        }
    }
}

impl<R> Drop for Zstd<'_, R> {
    fn drop(&mut self) {
        self.lent = None;
        let mut state = self.windows.state();
        state.streams -= 1;
        if state.streams == 0 {
            state.idle.clear();
        }
    }
}

/// Reads a frame's header and tells its window. No memory is taken for it: the decoder refuses any window at all.
fn window(source: impl Read) -> Result<u64, FrameDecoderError> {
    let mut refusing = FrameDecoder::new();
    refusing.set_max_window_size(0);
    match refusing.init(source) {
        Err(FrameDecoderError::WindowSizeTooBig { requested, .. }) if requested <= MAX_WINDOW => Ok(requested),
        Err(FrameDecoderError::WindowSizeTooBig { requested, .. }) => {
            Err(FrameDecoderError::WindowSizeTooBig { requested, max: MAX_WINDOW })
        }
        Err(other) => Err(other),
        Ok(()) => Ok(0),
    }
}

/// A decoder that makes its buffer in its final size: only the first frame's grows as it is filled.
fn new_decoder() -> FrameDecoder {
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(MAX_WINDOW);
    decoder.init(&EMPTY_FRAME[..]).expect("it is the header of a frame");
    decoder
}

/// Keeps what is read through it.
struct Recorded<'a, R> {
    source: R,
    record: &'a mut Vec<u8>,
}

impl<R: Read> Read for Recorded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.record.extend_from_slice(&buffer[..count]);
        Ok(count)
    }
}

/// A header that asks for the smallest window.
const EMPTY_FRAME: [u8; 6] = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x00];
/// Two windows of the usual size: as many as there are cores to decode them.
const BUDGET: u64 = 16 << 20;
/// What zstd's levels up to 19 ask for.
const USUAL: u64 = 8 << 20;
const MAX_WINDOW: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    /// A frame with this window descriptor, of one block that repeats a byte so often.
    fn frame(window: u8, byte: u8, times: u32) -> Vec<u8> {
        let block = (times << 3 | 0b011).to_le_bytes();
        [&EMPTY_FRAME[..5], &[window], &block[..3], &[byte]].concat()
    }

    fn read_all(stream: &[u8], windows: &Windows) -> Result<Vec<u8>, String> {
        let mut plain = Vec::new();
        Zstd::new(stream, windows).read_to_end(&mut plain).map_err(|e| e.to_string())?;
        Ok(plain)
    }

    #[test]
    fn frames_of_any_window_follow_each_other() {
        let windows = Windows::default();
        let text = b"something to refer back to, ".repeat(10_000);
        let skippable = [&0x184d_2a50_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), b"abc"].concat();
        let compressed = compress_to_vec(&text[..], CompressionLevel::Fastest);
        let stream = [&frame(0, b'a', 5), &skippable, &compressed, &frame(0x80, b'b', 7), &frame(0x68, b'c', 9)];
        let stream: Vec<u8> = stream.into_iter().flatten().copied().collect();

        let expected = [b"aaaaa", &text[..], b"bbbbbbb", b"ccccccccc"].concat();
        assert!(read_all(&stream, &windows).unwrap() == expected);

        let state = windows.state();
        assert_eq!((state.free, state.idle.len(), state.streams), (BUDGET, 0, 0));
    }

    #[test]
    fn what_is_no_frame_or_asks_for_too_much_is_refused() {
        let windows = Windows::default();
        // 2^(10 + 16) bytes are 64 MiB.
        assert!(read_all(&frame(0x80, b'a', 1), &windows).is_ok());
        for (stream, expected) in [
            (frame(0x81, b'a', 1), "requested: 75497472, max: 67108864"),
            (b"no frame at all".to_vec(), "badmagicnumber"),
            (EMPTY_FRAME[..5].to_vec(), "windowdescriptorreaderror"),
            (EMPTY_FRAME.to_vec(), "block header"),
        ] {
            let error = read_all(&stream, &windows).unwrap_err().to_lowercase();
            assert!(error.contains(expected), "{stream:?} gave {error}");
        }
        assert_eq!(windows.state().free, BUDGET);
    }

    #[test]
    fn a_stream_waits_for_the_windows_of_others() {
        let windows = Windows::default();
        // 2^(10 + 13) bytes are 8 MiB.
        let usual = frame(0x68, b'a', 5);
        let mut held: Vec<_> = (0..2).map(|_| Zstd::new(&usual[..], &windows)).collect();
        for stream in &mut held {
            stream.read_exact(&mut [0; 5]).unwrap();
        }
        assert_eq!(windows.state().free, 0);

        thread::scope(|scope| {
            let (done, is_done) = mpsc::channel();
            let (usual, windows) = (&usual, &windows);
            scope.spawn(move || done.send(read_all(usual, windows).unwrap()));
            // It counts as a stream before it waits.
            while windows.state().streams < 3 {
                thread::yield_now();
            }
            assert!(is_done.try_recv().is_err());
            held.pop();
            assert_eq!(is_done.recv().unwrap(), b"aaaaa");
        });
        drop(held);
        assert_eq!(windows.state().free, BUDGET);
    }

    #[test]
    fn a_buffer_goes_from_stream_to_stream_and_ends_with_the_last() {
        let windows = Windows::default();
        let usual = frame(0x68, b'a', 5);
        let kept = Zstd::new(&usual[..], &windows);
        read_all(&usual, &windows).unwrap();
        assert_eq!(windows.state().idle.len(), 1);
        read_all(&usual, &windows).unwrap();
        assert_eq!(windows.state().idle.len(), 1);
        drop(kept);
        assert_eq!(windows.state().idle.len(), 0);
    }
}
