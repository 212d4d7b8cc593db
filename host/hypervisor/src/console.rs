//! The guest's console: the last lines it has printed, and a way to wait for one.
//!
//! What a guest prints is not to be trusted: lines are cut, control characters are escaped, and only so much is kept.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::{Instant, timeout_at};

/// One line of a console.
#[derive(Clone, Debug)]
pub struct Line {
    /// When its end arrived.
    pub at: Instant,
    /// Printable ASCII of at most 1 KiB; everything else is escaped as in a Rust byte string.
    pub text: Arc<str>,
}

/// A guest's console. Keeps the last 64 KiB of its lines; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Console(Arc<Mutex<Ring>>);

impl Console {
    /// A console that waits for its first line.
    pub fn new() -> Self {
        let ring = Ring { followers: Some(broadcast::channel(FOLLOWED_LINES).0), ..Ring::default() };
        Self(Arc::new(Mutex::new(ring)))
    }

    /// Captures `input` until its end.
    pub async fn capture(&self, mut input: impl AsyncRead + Unpin) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = input.read(&mut buffer).await {
            self.ring().push(&buffer[..length]);
        }
        self.ring().close();
    }

    /// All lines that are kept, oldest first.
    pub fn lines(&self) -> Vec<Line> {
        self.ring().lines.iter().cloned().collect()
    }

    /// The last `count` lines, oldest first.
    pub fn tail(&self, count: usize) -> Vec<Line> {
        let ring = self.ring();
        ring.lines.iter().skip(ring.lines.len().saturating_sub(count)).cloned().collect()
    }

    /// All lines that are kept, and those to come: none is missed in between.
    pub fn follow(&self) -> (Vec<Line>, broadcast::Receiver<Line>) {
        let ring = self.ring();
        (ring.lines.iter().cloned().collect(), ring.subscribe())
    }

    /// Lines from now on. A receiver that falls 256 lines behind misses some; it ends with the console.
    pub fn subscribe(&self) -> broadcast::Receiver<Line> {
        self.ring().subscribe()
    }

    /// The first line, of those kept and those to come, that `wanted` accepts.
    ///
    /// # Errors
    /// [`WaitError::Deadline`] if none came in time, [`WaitError::Ended`] if none can come any more.
    pub async fn wait_for(&self, mut wanted: impl FnMut(&str) -> bool, deadline: Instant) -> Result<Line, WaitError> {
        let mut search = |lines: &VecDeque<Line>| lines.iter().find(|line| wanted(&line.text)).cloned();
        let (found, mut followed) = {
            let ring = self.ring();
            (search(&ring.lines), ring.subscribe())
        };
        if let Some(line) = found {
            return Ok(line);
        }
        loop {
            let lines = match timeout_at(deadline, followed.recv()).await {
                Ok(Ok(line)) => VecDeque::from([line]),
                // What was missed is still in the ring, unless the guest floods it.
                Ok(Err(RecvError::Lagged(_))) => self.ring().lines.clone(),
                Ok(Err(RecvError::Closed)) => return Err(WaitError::Ended),
                Err(_) => return Err(WaitError::Deadline),
            };
            if let Some(line) = search(&lines) {
                return Ok(line);
            }
        }
    }

    /// Why the guest's kernel panicked, if it did: kept even when its line is not.
    pub fn kernel_panic(&self) -> Option<String> {
        self.ring().panic.clone()
    }

    /// The reason in a line with which a Linux kernel reports a panic.
    pub(crate) fn panic_in(line: &str) -> Option<&str> {
        line.split_once("Kernel panic - not syncing: ").map(|(_, reason)| reason.trim_end())
    }

    /// Of some lines, the one that says most about why a guest did not go on: the last that complains, else the last.
    pub(crate) fn telling<'a>(lines: impl DoubleEndedIterator<Item = &'a str> + Clone) -> Option<&'a str> {
        let complains = |line: &&str| {
            let line = line.to_ascii_lowercase();
            COMPLAINTS.iter().any(|complaint| line.contains(complaint))
        };
        let words = lines.filter(|line| line.bytes().any(|byte| byte.is_ascii_alphanumeric()));
        words.clone().rev().find(complains).or_else(|| words.clone().next_back())
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why [`Console::wait_for`] found no line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The deadline has passed.
    #[error("the console did not say so in time")]
    Deadline,
    /// The VM has ended.
    #[error("the console has ended")]
    Ended,
}

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<Line>,
    size: usize,
    /// The line that has not ended yet, escaped and cut.
    partial: String,
    panic: Option<String>,
    /// `None` when the console has ended.
    followers: Option<broadcast::Sender<Line>>,
}

impl Ring {
    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                b'\r' => {}
                b' '..=b'~' | b'\t' if self.partial.len() < MAX_LINE => self.partial.push(byte.into()),
                _ if self.partial.len() + ESCAPE <= MAX_LINE => {
                    self.partial.extend(std::ascii::escape_default(byte).map(char::from));
                }
                _ => {}
            }
        }
    }

    fn end_line(&mut self) {
        let line = Line { at: Instant::now(), text: std::mem::take(&mut self.partial).into() };
        if self.panic.is_none() {
            self.panic = Console::panic_in(&line.text).map(str::to_owned);
        }
        self.size += line.cost();
        self.lines.push_back(line.clone());
        while self.size > CAPACITY {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.size -= oldest.cost();
        }
        if let Some(followers) = &self.followers {
            // Fails if nobody follows, which is fine.
            let _ = followers.send(line);
        }
    }

    fn close(&mut self) {
        if !self.partial.is_empty() {
            self.end_line();
        }
        self.followers = None;
    }

    fn subscribe(&self) -> broadcast::Receiver<Line> {
        match &self.followers {
            Some(followers) => followers.subscribe(),
            None => broadcast::channel(1).1,
        }
    }
}

impl Line {
    /// An empty line is not for free either.
    fn cost(&self) -> usize {
        self.text.len() + size_of::<Self>()
    }
}

/// What a kernel or an init says when something is wrong, in small letters.
const COMPLAINTS: [&str; 12] = [
    "panic",
    "error",
    "fail",
    "refused",
    "not found",
    "no such",
    "can't",
    "cannot",
    "unable",
    "out of memory",
    "invalid",
    "denied",
];
const CAPACITY: usize = 64 << 10;
const MAX_LINE: usize = 1 << 10;
/// The longest escape, `\x1b`.
const ESCAPE: usize = 4;
const FOLLOWED_LINES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn lines_are_kept_in_order_and_the_last_needs_no_end() {
        let console = Console::new();
        console.capture(&b"one\r\ntwo\nthree"[..]).await;
        assert_eq!(texts(&console.lines()), ["one", "two", "three"]);
        assert_eq!(texts(&console.tail(2)), ["two", "three"]);
        assert_eq!(texts(&console.tail(9)), ["one", "two", "three"]);
    }

    #[tokio::test]
    async fn what_is_not_printable_is_escaped() {
        let console = Console::new();
        console.capture(&b"\x1b[31mred\x1b[0m \xc3\xa4\tend\n"[..]).await;
        assert_eq!(texts(&console.lines()), ["\\x1b[31mred\\x1b[0m \\xc3\\xa4\tend"]);
    }

    #[tokio::test]
    async fn a_flood_is_cut_and_only_its_end_is_kept() {
        let console = Console::new();
        let mut flood = vec![b'x'; 1 << 20];
        flood.extend_from_slice(b"\nlast\n");
        for _ in 0..3 {
            flood.extend(std::iter::repeat_n(b'\n', 10_000));
        }
        flood.extend_from_slice(b"the end\n");
        console.capture(&flood[..]).await;

        let lines = console.lines();
        assert!(lines.len() < CAPACITY / size_of::<Line>() + 1);
        assert_eq!(&*lines[lines.len() - 1].text, "the end");
    }

    #[tokio::test]
    async fn a_line_is_waited_for_in_the_past_and_in_the_future() {
        let console = Console::new();
        let (mut guest, input) = tokio::io::duplex(64);
        let capture = tokio::spawn({
            let console = console.clone();
            async move { console.capture(input).await }
        });
        let deadline = Instant::now() + Duration::from_secs(10);

        let (found, _) = tokio::join!(console.wait_for(|line| line == "ready", deadline), async {
            guest.write_all(b"booting\nready\n").await.unwrap();
        });
        assert_eq!(&*found.unwrap().text, "ready");
        assert_eq!(&*console.wait_for(|line| line == "booting", deadline).await.unwrap().text, "booting");

        drop(guest);
        capture.await.unwrap();
        assert_eq!(console.wait_for(|line| line == "more", deadline).await.unwrap_err(), WaitError::Ended);
    }

    #[tokio::test]
    async fn a_line_that_does_not_come_is_not_waited_for_beyond_the_deadline() {
        let error = Console::new().wait_for(|_| true, Instant::now()).await.unwrap_err();
        assert_eq!(error, WaitError::Deadline);
    }

    #[tokio::test]
    async fn a_kernel_panic_is_remembered_when_its_line_is_gone() {
        let console = Console::new();
        let mut output =
            b"[    1.5] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\r\n".to_vec();
        output.extend_from_slice(b"[    1.6] ---[ end Kernel panic - not syncing: something else ]---\n");
        output.extend(std::iter::repeat_n(b'\n', 10_000));
        console.capture(&output[..]).await;
        assert_eq!(console.kernel_panic().as_deref(), Some("Attempted to kill init! exitcode=0x0000000b"));
    }

    #[test]
    fn the_telling_line_is_the_last_complaint_or_the_last_with_words() {
        for (lines, telling) in [
            (
                &["a", "VFS: Unable to mount root fs", "reboot: Power down", "  "][..],
                Some("VFS: Unable to mount root fs"),
            ),
            (&["one error", "another Error", "..."][..], Some("another Error")),
            (&["first", "second", "---"][..], Some("second")),
            (&["", "--"][..], None),
            (&[][..], None),
        ] {
            assert_eq!(Console::telling(lines.iter().copied()), telling, "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn no_output_breaks_the_bounds(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 0..60)) {
            let console = Console::new();
            for chunk in &chunks {
                console.ring().push(chunk);
            }
            console.ring().close();
            let lines = console.lines();
            prop_assert!(lines.iter().map(Line::cost).sum::<usize>() <= CAPACITY);
            for line in lines {
                prop_assert!(line.text.len() <= MAX_LINE);
                prop_assert!(line.text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t')));
            }
        }
    }

    fn texts(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|line| &*line.text).collect()
    }
}
