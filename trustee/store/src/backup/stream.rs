//! Records in sealed chunks.

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use zeroize::Zeroizing;

use super::{Error, Header};
use crate::MAX_VALUE;
use crate::key::{Key, is_namespace};
use crate::master_key::MasterKey;

/// One entry.
pub(super) struct Record {
    pub namespace: String,
    pub key: Key,
    pub value: Zeroizing<Vec<u8>>,
}

impl Record {
    /// The record at the start of `bytes` and its length; nothing if it goes on beyond them.
    fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, Error> {
        let Some((length, rest)) = bytes.split_first() else { return Ok(None) };
        let Some((namespace, rest)) = rest.split_at_checked(usize::from(*length)) else { return Ok(None) };
        let Some((length, rest)) = rest.split_first_chunk() else { return Ok(None) };
        let Some((key, rest)) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length))) else {
            return Ok(None);
        };
        let Some((length, rest)) = rest.split_first_chunk() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_VALUE {
            return Err(Error::Damaged);
        }
        let Some((value, rest)) = rest.split_at_checked(length) else { return Ok(None) };
        let namespace = std::str::from_utf8(namespace).ok().filter(|name| is_namespace(name)).ok_or(Error::Damaged)?;
        let key = std::str::from_utf8(key).ok().and_then(|key| Key::parse(key).ok()).ok_or(Error::Damaged)?;
        let record = Self { namespace: namespace.to_owned(), key, value: value.to_vec().into() };
        Ok(Some((record, bytes.len() - rest.len())))
    }

    fn write(namespace: &str, key: &str, value: &[u8], to: &mut Vec<u8>) {
        // The store holds no longer names and values.
        to.push(namespace.len() as u8);
        to.extend_from_slice(namespace.as_bytes());
        to.extend((key.len() as u16).to_be_bytes());
        to.extend_from_slice(key.as_bytes());
        to.extend((value.len() as u32).to_be_bytes());
        to.extend_from_slice(value);
    }
}

/// Writes a backup.
pub(super) struct Sealer<W> {
    to: W,
    chunks: Chunks,
    waiting: Zeroizing<Vec<u8>>,
}

impl<W: AsyncWrite + Unpin> Sealer<W> {
    pub async fn start(mut to: W, header: Header, key: &MasterKey) -> Result<Self, Error> {
        let chunks = Chunks::new(&header, key)?;
        to.write_all(&chunks.header).await?;
        Ok(Self { to, chunks, waiting: Zeroizing::default() })
    }

    pub async fn record(&mut self, namespace: &str, key: &str, value: &[u8]) -> Result<(), Error> {
        // Room for all of it at once: a buffer that grows leaves copies behind.
        let mut next =
            Zeroizing::new(Vec::with_capacity(self.waiting.len() + namespace.len() + key.len() + value.len() + 7));
        next.extend_from_slice(&self.waiting);
        Record::write(namespace, key, value, &mut next);
        let whole = next.len() / CHUNK * CHUNK;
        for chunk in next[..whole].chunks(CHUNK) {
            self.to.write_all(&self.chunks.seal(chunk, false)?).await?;
        }
        self.waiting = Zeroizing::new(next[whole..].to_vec());
        Ok(())
    }

    pub async fn finish(mut self) -> Result<(), Error> {
        let last = self.chunks.seal(&self.waiting, true)?;
        self.to.write_all(&last).await?;
        Ok(self.to.flush().await?)
    }
}

/// Reads a backup.
pub(super) struct Opener<R> {
    from: R,
    chunks: Chunks,
    waiting: Zeroizing<Vec<u8>>,
    /// How many bytes of `waiting` are done with.
    done: usize,
    ended: bool,
}

impl<R: AsyncRead + Unpin> Opener<R> {
    pub async fn start(mut from: R, key: &MasterKey) -> Result<Self, Error> {
        let mut header = Vec::with_capacity(Header::LENGTH);
        (&mut from).take(Header::LENGTH as u64).read_to_end(&mut header).await?;
        let header = Header::parse(&header)?;
        let chunks = Chunks::new(&header, key)?;
        Ok(Self { from, chunks, waiting: Zeroizing::default(), done: 0, ended: false })
    }

    /// The next record; nothing after the last.
    pub async fn record(&mut self) -> Result<Option<Record>, Error> {
        loop {
            if let Some((record, length)) = Record::parse(&self.waiting[self.done..])? {
                self.done += length;
                return Ok(Some(record));
            }
            if self.ended {
                return if self.done == self.waiting.len() { Ok(None) } else { Err(Error::Damaged) };
            }
            self.chunk().await?;
        }
    }

    async fn chunk(&mut self) -> Result<(), Error> {
        let mut length = [0; 4];
        self.fill(&mut length).await?;
        let length = u32::from_be_bytes(length);
        let (length, last) = ((length & !LAST) as usize, length & LAST != 0);
        if length > CHUNK + TAG {
            return Err(Error::Damaged);
        }
        let mut sealed = Zeroizing::new(vec![0; length]);
        self.fill(&mut sealed).await?;
        let opened = self.chunks.open(&mut sealed, last)?;
        let mut next = Zeroizing::new(Vec::with_capacity(self.waiting.len() - self.done + opened.len()));
        next.extend_from_slice(&self.waiting[self.done..]);
        next.extend_from_slice(opened);
        (self.waiting, self.done, self.ended) = (next, 0, last);
        if last && self.from.read(&mut [0]).await? != 0 {
            return Err(Error::Damaged);
        }
        Ok(())
    }

    async fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        match self.from.read_exact(bytes).await {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err(Error::Damaged),
            other => Ok(_ = other?),
        }
    }
}

/// The key of one backup, and how many chunks it has sealed or opened.
struct Chunks {
    key: LessSafeKey,
    header: Vec<u8>,
    count: u64,
}

impl Chunks {
    fn new(header: &Header, key: &MasterKey) -> Result<Self, Error> {
        let derived = key.derive(&header.key_id, &header.salt, PURPOSE);
        let key = derived.ok_or_else(|| Error::OtherKey(header.key_id.clone()))?;
        Ok(Self { key, header: header.to_bytes(), count: 0 })
    }

    fn seal(&mut self, plaintext: &[u8], last: bool) -> Result<Vec<u8>, Error> {
        let mut length = (plaintext.len() + TAG) as u32;
        if last {
            length |= LAST;
        }
        let mut sealed = Vec::with_capacity(4 + plaintext.len() + TAG);
        sealed.extend(length.to_be_bytes());
        sealed.extend_from_slice(plaintext);
        let (nonce, bound_to) = self.next(last);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(bound_to), &mut sealed[4..])
            .map_err(|_| Error::Damaged)?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    fn open<'a>(&mut self, sealed: &'a mut [u8], last: bool) -> Result<&'a [u8], Error> {
        let (nonce, bound_to) = self.next(last);
        let opened = self.key.open_in_place(nonce, Aad::from(bound_to), sealed).map_err(|_| Error::Damaged)?;
        Ok(opened)
    }

    fn next(&mut self, last: bool) -> (Nonce, Vec<u8>) {
        let mut nonce = [0; NONCE_LEN];
        nonce[NONCE_LEN - 8..].copy_from_slice(&self.count.to_be_bytes());
        self.count += 1;
        let mut bound_to = self.header.clone();
        bound_to.push(u8::from(last));
        (Nonce::assume_unique_for_key(nonce), bound_to)
    }
}

/// Plaintext of each chunk but the last.
pub(super) const CHUNK: usize = 64 << 10;
const TAG: usize = 16;
const LAST: u32 = 1 << 31;
const PURPOSE: &[u8] = b"cocoon backup 1";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Record::parse(&bytes);
        }

        #[test]
        fn a_record_survives_and_a_part_of_it_is_waited_for(
            namespace in "[a-z_-]{1,64}",
            key in "[a-zA-Z0-9/._-]{1,512}",
            value in proptest::collection::vec(any::<u8>(), 0..300),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = Vec::new();
            Record::write(&namespace, &key, &value, &mut bytes);
            let (record, length) = Record::parse(&bytes).unwrap().unwrap();
            prop_assert_eq!(length, bytes.len());
            prop_assert_eq!((record.namespace, record.key.as_str(), record.value.to_vec()), (namespace, key.as_str(), value));
            prop_assert!(Record::parse(&bytes[..cut.index(bytes.len())]).unwrap().is_none());
        }
    }
}
