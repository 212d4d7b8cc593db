//! The tar reader: ustar, GNU and PAX archives as a stream of entries, in bounded memory.
//!
//! Its own because a layer is untrusted: the known readers hold names and PAX records of any size in memory, and end
//! a PAX value at its first newline, which cuts binary attributes such as file capabilities. Where readers differ,
//! this one decides like Go's `archive/tar`, with which container engines read layers.
//!
//! Source: POSIX.1-2017 `pax`, GNU tar manual ("Basic Tar Format", "Sparse Formats").

use std::io::{self, BufRead};

use crate::header::{BLOCK, DEV_MAJOR, DEV_MINOR, GID, GNU_REAL_SIZE, Header, LINK, MODE, MTIME, SIZE, UID};
use crate::pax::Records;
use crate::sparse::{self, Segment};

/// Reads entries from a stream.
pub(crate) struct Archive<R> {
    source: R,
    /// Bytes of the current entry that were not read yet.
    data: u64,
    /// Bytes between the current entry's data and the next header.
    padding: u64,
    /// How many of these only fill up a block. At the end of an archive some writers leave them out, umoci for one.
    filling: u64,
}

/// One member of an archive.
#[derive(Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub(crate) mtime: (i64, u32),
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The length of a file, with its holes.
    pub(crate) size: u64,
    /// Where the data of a file with holes belongs.
    pub(crate) segments: Option<Vec<Segment>>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// Why an archive can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Io(io::Error),
    #[error("the archive ends inside an entry")]
    Truncated,
    #[error("a header's checksum is wrong")]
    Checksum,
    #[error("a header's field {0} is not a number in range")]
    Number(&'static str),
    #[error("a header has the unknown type {:?}", char::from(*.0))]
    Type(u8),
    #[error("{what} is longer than {limit} bytes")]
    TooLong { what: &'static str, limit: u64 },
    #[error("a PAX record is malformed")]
    Pax,
    #[error("a map of a file's holes is malformed or too long")]
    Sparse,
    #[error("the sparse format {0} is not known, only GNU's own, 0.0, 0.1 and 1.0")]
    SparseFormat(String),
    #[error("a header describes an entry that does not follow")]
    Dangling,
}

impl<R: BufRead> Archive<R> {
    pub(crate) fn new(source: R) -> Self {
        Self { source, data: 0, padding: 0, filling: 0 }
    }

    /// The next member, or nothing at the end of the archive. Data of the previous one that was not read is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Error> {
        let mut extended = Extended::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return if extended.is_empty() { Ok(None) } else { Err(Error::Dangling) };
            };
            let size = header.number(SIZE).ok_or(Error::Number("size"))?;
            match header.kind() {
                b'L' => extended.path = Some(self.text(size, "a name")?),
                b'K' => extended.link = Some(self.text(size, "a link's name")?),
                b'x' => {
                    let bytes = self.bytes(size, MAX_PAX, "a PAX header")?;
                    extended.pax = Some(Records::parse(&bytes).ok_or(Error::Pax)?);
                }
                // A global header holds what no layer needs, such as a comment.
                b'g' => self.enter(0, size)?,
                kind => return self.member(&header, kind, size, extended).map(Some),
            }
        }
    }

    /// What is at hand of the current entry's data, without its holes; nothing at its end.
    pub(crate) fn data(&mut self) -> Result<&[u8], Error> {
        if self.data == 0 {
            return Ok(&[]);
        }
        let bytes = self.source.fill_buf().map_err(Error::Io)?;
        if bytes.is_empty() {
            return Err(Error::Truncated);
        }
        let limit = bytes.len().min(usize::try_from(self.data).unwrap_or(usize::MAX));
        Ok(&bytes[..limit])
    }

    /// Steps over bytes that [`Self::data`] has shown.
    pub(crate) fn consume(&mut self, count: usize) {
        self.source.consume(count);
        self.data = self.data.saturating_sub(count as u64);
    }

    /// Reads from the current entry's data.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let data = self.data()?;
        let count = data.len().min(buffer.len());
        buffer[..count].copy_from_slice(&data[..count]);
        self.consume(count);
        Ok(count)
    }

    fn member(&mut self, header: &Header, kind: u8, size: u64, extended: Extended) -> Result<Entry, Error> {
        let mut pax = extended.pax.unwrap_or_default();
        let size = pax.size.unwrap_or(size);
        let path = extended.path.or(pax.path.take()).unwrap_or_else(|| header.path());
        let kind = match kind {
            b'0' | 0 | b'7' | b'S' if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(Error::Type(other)),
        };
        // Like Go's reader: only files have data, whatever the header says.
        let size = if kind == Kind::File { size } else { 0 };
        self.enter(size, size)?;

        let mut entry = Entry {
            path,
            link: extended.link.or(pax.link.take()).unwrap_or_else(|| header.text(LINK).to_vec()),
            kind,
            mode: (header.number(MODE).ok_or(Error::Number("mode"))? & 0o7777) as u32,
            uid: narrow(pax.uid.or(header.number(UID)), "uid")?,
            gid: narrow(pax.gid.or(header.number(GID)), "gid")?,
            mtime: pax.mtime.unwrap_or((header.number(MTIME).ok_or(Error::Number("mtime"))?.cast_signed(), 0)),
            device: (0, 0),
            xattrs: std::mem::take(&mut pax.xattrs),
            size: self.data,
            segments: None,
        };
        if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            entry.device = (narrow(header.number(DEV_MAJOR), "device")?, narrow(header.number(DEV_MINOR), "device")?);
        }
        if kind == Kind::File {
            self.holes(header, &mut pax, &mut entry)?;
        }
        Ok(entry)
    }

    /// Reads the map of a file with holes, if it is one.
    fn holes(&mut self, header: &Header, pax: &mut Records, entry: &mut Entry) -> Result<(), Error> {
        let segments = if header.kind() == b'S' {
            let mut map = sparse::Map::default();
            let (descriptors, mut extended) = header.gnu_sparse();
            map.add_gnu(descriptors).ok_or(Error::Sparse)?;
            entry.size = header.number(GNU_REAL_SIZE).ok_or(Error::Number("real size"))?;
            while extended {
                let mut block = [0; BLOCK];
                if !self.fill(&mut block)? {
                    return Err(Error::Truncated);
                }
                map.add_gnu(&block[..21 * 24]).ok_or(Error::Sparse)?;
                extended = block[21 * 24] != 0;
            }
            map
        } else if let Some((major, minor)) = pax.sparse_version() {
            if let Some(name) = pax.sparse_name.take() {
                entry.path = name;
            }
            entry.size = pax.real_size.ok_or(Error::Sparse)?;
            match (major, minor) {
                (0, 0 | 1) => sparse::Map::from_pairs(&pax.sparse_map).ok_or(Error::Sparse)?,
                (1, 0) => self.sparse_map()?,
                _ => return Err(Error::SparseFormat(format!("{major}.{minor}"))),
            }
        } else {
            return Ok(());
        };
        entry.segments = Some(segments.finish(entry.size, self.data).ok_or(Error::Sparse)?);
        Ok(())
    }

    /// Sparse format 1.0: decimal numbers on lines of their own before the data, padded to whole blocks.
    fn sparse_map(&mut self) -> Result<sparse::Map, Error> {
        let mut map = sparse::Map::default();
        let mut block = [0; BLOCK];
        let mut lines = sparse::Lines::default();
        while !lines.done() {
            let mut filled = 0;
            while filled < BLOCK {
                match self.read(&mut block[filled..])? {
                    0 => return Err(Error::Sparse),
                    count => filled += count,
                }
            }
            lines.add(&block, &mut map).ok_or(Error::Sparse)?;
        }
        Ok(map)
    }

    /// Declares what follows the header: `data` bytes that may be read, of `size` bytes in all.
    fn enter(&mut self, data: u64, size: u64) -> Result<(), Error> {
        let end = size.checked_next_multiple_of(BLOCK as u64).ok_or(Error::Number("size"))?;
        (self.data, self.padding, self.filling) = (data, end - data, end - size);
        Ok(())
    }

    fn text(&mut self, size: u64, what: &'static str) -> Result<Vec<u8>, Error> {
        let mut text = self.bytes(size, MAX_NAME, what)?;
        text.truncate(text.iter().position(|byte| *byte == 0).unwrap_or(text.len()));
        Ok(text)
    }

    fn bytes(&mut self, size: u64, limit: u64, what: &'static str) -> Result<Vec<u8>, Error> {
        if size > limit {
            return Err(Error::TooLong { what, limit });
        }
        self.enter(size, size)?;
        let mut bytes = vec![0; size as usize];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += self.read(&mut bytes[filled..])?;
        }
        Ok(bytes)
    }

    fn skip(&mut self) -> Result<(), Error> {
        let mut rest = self.data + self.padding;
        while rest > 0 {
            let bytes = self.source.fill_buf().map_err(Error::Io)?.len();
            match bytes {
                0 if rest <= self.filling => break,
                0 => return Err(Error::Truncated),
                _ => {}
            }
            let count = bytes.min(usize::try_from(rest).unwrap_or(usize::MAX));
            self.source.consume(count);
            rest -= count as u64;
        }
        (self.data, self.padding) = (0, 0);
        Ok(())
    }

    /// The next header; nothing at the end of the stream and at the two blocks of zeros that end an archive.
    fn header(&mut self) -> Result<Option<Header>, Error> {
        let mut block = [0; BLOCK];
        if !self.fill(&mut block)? {
            return Ok(None);
        }
        if block == [0; BLOCK] {
            return match !self.fill(&mut block)? || block == [0; BLOCK] {
                true => Ok(None),
                false => Err(Error::Checksum),
            };
        }
        Header::new(block).map(Some).ok_or(Error::Checksum)
    }

    fn fill(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, Error> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut block[filled..]).map_err(Error::Io)? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(Error::Truncated),
                count => filled += count,
            }
        }
        Ok(true)
    }
}

/// What headers before a member say about it.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Records>,
}

impl Extended {
    fn is_empty(&self) -> bool {
        self.path.is_none() && self.link.is_none() && self.pax.is_none()
    }
}

fn narrow(value: Option<u64>, field: &'static str) -> Result<u32, Error> {
    value.and_then(|value| u32::try_from(value).ok()).ok_or(Error::Number(field))
}

/// The kernel's PATH_MAX, with the byte that ends it.
const MAX_NAME: u64 = 4097;
/// A file may have 64 KiB in each of several attributes.
const MAX_PAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tar::{Builder, EntryType, Header as Writer};

    fn header(kind: EntryType, size: u64) -> Writer {
        let mut header = Writer::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o4755);
        header.set_uid(1000);
        header.set_gid(3_000_000);
        header.set_mtime(1_700_000_000);
        header
    }

    fn entries(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, Error> {
        let mut archive = Archive::new(bytes);
        let mut all = Vec::new();
        while let Some(entry) = archive.next()? {
            let mut data = Vec::new();
            let mut buffer = [0; 7];
            loop {
                match archive.read(&mut buffer)? {
                    0 => break,
                    count => data.extend_from_slice(&buffer[..count]),
                }
            }
            all.push((entry, data));
        }
        Ok(all)
    }

    #[test]
    fn an_ordinary_archive_is_read_whole() {
        let long = "d/".repeat(150) + "file";
        let mut builder = Builder::new(Vec::new());
        builder.append_data(&mut header(EntryType::Regular, 5), &long, &b"hello"[..]).unwrap();
        builder.append_link(&mut header(EntryType::Link, 0), "hard", &long).unwrap();
        builder.append_link(&mut header(EntryType::Symlink, 0), "soft", "../x").unwrap();
        let bytes = builder.into_inner().unwrap();

        let all = entries(&bytes).unwrap();

        let (file, data) = &all[0];
        assert_eq!((file.path.as_slice(), data.as_slice()), (long.as_bytes(), &b"hello"[..]));
        assert_eq!((file.mode, file.uid, file.gid, file.mtime), (0o4755, 1000, 3_000_000, (1_700_000_000, 0)));
        assert_eq!((all[1].0.kind, all[1].0.link.as_slice()), (Kind::HardLink, long.as_bytes()));
        assert_eq!((all[2].0.kind, all[2].0.link.as_slice()), (Kind::Symlink, &b"../x"[..]));
    }

    #[test]
    fn pax_records_override_the_header() {
        let mut builder = Builder::new(Vec::new());
        let capability: &[u8] = b"\x01\0\0\x02\n\n=5 a\0\xff";
        builder
            .append_pax_extensions([
                ("path", &b"caf\xc3\xa9"[..]),
                ("mtime", b"-1.25"),
                ("uid", b"4000000000"),
                ("SCHILY.xattr.security.capability", capability),
            ])
            .unwrap();
        builder.append_data(&mut header(EntryType::Regular, 1), "short", &b"x"[..]).unwrap();

        let all = entries(&builder.into_inner().unwrap()).unwrap();

        let entry = &all[0].0;
        assert_eq!((entry.path.as_slice(), entry.uid), ("café".as_bytes(), 4_000_000_000));
        assert_eq!(entry.mtime, (-2, 750_000_000));
        assert_eq!(entry.xattrs, [(b"security.capability".to_vec(), capability.to_vec())]);
    }

    #[test]
    fn what_is_cut_short_is_refused() {
        let mut builder = Builder::new(Vec::new());
        builder.append_data(&mut header(EntryType::Regular, 600), "file", &[1; 600][..]).unwrap();
        let bytes = builder.into_inner().unwrap();
        for end in [1, 511, 513, 1111] {
            assert!(matches!(entries(&bytes[..end]), Err(Error::Truncated)), "cut at {end}");
        }
        // The last block need not be filled up.
        for end in [512 + 600, 1200, 512 + 1024, bytes.len()] {
            assert_eq!(entries(&bytes[..end]).unwrap().len(), 1, "cut at {end}");
        }
    }

    #[test]
    fn a_name_or_pax_header_of_any_size_is_not_held_in_memory() {
        for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
            let mut head = header(kind, 8 << 30);
            head.set_path("x").unwrap();
            head.set_cksum();
            assert!(matches!(entries(head.as_bytes()), Err(Error::TooLong { .. })), "{kind:?}");
        }
    }

    #[test]
    fn a_file_with_holes_keeps_them() {
        let mut head = header(EntryType::GNUSparse, 1024);
        {
            let gnu = head.as_gnu_mut().unwrap();
            gnu.sparse[0].set_offset(512);
            gnu.sparse[0].set_length(512);
            gnu.sparse[1].set_offset(1 << 30);
            gnu.sparse[1].set_length(512);
            gnu.set_real_size((1 << 30) + 512);
        }
        let mut builder = Builder::new(Vec::new());
        builder.append_data(&mut head, "holes", &[7; 1024][..]).unwrap();

        let all = entries(&builder.into_inner().unwrap()).unwrap();

        assert_eq!((all[0].0.size, all[0].1.len()), ((1 << 30) + 512, 1024));
        let segments: Vec<_> = all[0].0.segments.as_ref().unwrap().iter().map(|s| (s.offset, s.length)).collect();
        assert_eq!(segments, [(512, 512), (1 << 30, 512)]);
    }

    #[test]
    fn a_map_of_holes_may_go_on_in_blocks_of_its_own() {
        let mut head = header(EntryType::GNUSparse, 6 * 512);
        head.set_path("holes").unwrap();
        let place = |index: u64| (index * 4096, 512);
        {
            let gnu = head.as_gnu_mut().unwrap();
            for (index, descriptor) in (0..).zip(&mut gnu.sparse) {
                descriptor.set_offset(place(index).0);
                descriptor.set_length(place(index).1);
            }
            gnu.isextended[0] = 1;
            gnu.set_real_size(5 * 4096 + 512);
        }
        head.set_cksum();
        let mut more = tar::GnuExtSparseHeader::new();
        for (index, descriptor) in (4..6).zip(&mut more.sparse) {
            descriptor.set_offset(place(index).0);
            descriptor.set_length(place(index).1);
        }

        let all = entries(&[&head.as_bytes()[..], more.as_bytes(), &[7; 6 * 512]].concat()).unwrap();

        assert_eq!((all[0].0.size, all[0].1.len()), (5 * 4096 + 512, 6 * 512));
        let segments: Vec<_> = all[0].0.segments.as_ref().unwrap().iter().map(|s| (s.offset, s.length)).collect();
        assert_eq!(segments, (0..6).map(place).collect::<Vec<_>>());
    }

    #[test]
    fn the_sparse_format_1_0_is_read() {
        let map = b"2\n0\n3\n4096\n2\n";
        let mut data = map.to_vec();
        data.resize(512, 0);
        data.extend_from_slice(b"abcde");
        let mut builder = Builder::new(Vec::new());
        builder
            .append_pax_extensions([
                ("GNU.sparse.major", &b"1"[..]),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"real/name"),
                ("GNU.sparse.realsize", b"4098"),
            ])
            .unwrap();
        builder
            .append_data(&mut header(EntryType::Regular, data.len() as u64), "GNUSparseFile.0/name", &data[..])
            .unwrap();

        let all = entries(&builder.into_inner().unwrap()).unwrap();

        let (entry, rest) = &all[0];
        assert_eq!((entry.path.as_slice(), entry.size, rest.as_slice()), (&b"real/name"[..], 4098, &b"abcde"[..]));
        let segments: Vec<_> = entry.segments.as_ref().unwrap().iter().map(|s| (s.offset, s.length)).collect();
        assert_eq!(segments, [(0, 3), (4096, 2)]);
    }

    #[test]
    fn the_sparse_formats_0_0_and_0_1_are_read() {
        let old = [
            ("GNU.sparse.size", "4098"),
            ("GNU.sparse.numblocks", "2"),
            ("GNU.sparse.offset", "0"),
            ("GNU.sparse.numbytes", "3"),
            ("GNU.sparse.offset", "4096"),
            ("GNU.sparse.numbytes", "2"),
        ];
        let new = [
            ("GNU.sparse.size", "4098"),
            ("GNU.sparse.numblocks", "2"),
            ("GNU.sparse.name", "real/name"),
            ("GNU.sparse.map", "0,3,4096,2"),
        ];
        for (records, name) in [(&old[..], "stored/name"), (&new[..], "real/name")] {
            let mut builder = Builder::new(Vec::new());
            builder.append_pax_extensions(records.iter().map(|(key, value)| (*key, value.as_bytes()))).unwrap();
            builder.append_data(&mut header(EntryType::Regular, 5), "stored/name", &b"abcde"[..]).unwrap();

            let all = entries(&builder.into_inner().unwrap()).unwrap();

            let (entry, rest) = &all[0];
            assert_eq!((entry.path.as_slice(), entry.size, rest.as_slice()), (name.as_bytes(), 4098, &b"abcde"[..]));
            let segments: Vec<_> = entry.segments.as_ref().unwrap().iter().map(|s| (s.offset, s.length)).collect();
            assert_eq!(segments, [(0, 3), (4096, 2)]);
        }
    }

    #[test]
    fn a_map_of_holes_that_does_not_fit_is_refused() {
        for (map, size, expected) in [
            ("0,3,4096,3", "4100", "malformed"),
            ("0,3,4096,2", "4097", "malformed"),
            ("4096,3,0,2", "4100", "malformed"),
            ("0,3,4096", "4100", "malformed"),
            ("0,x", "4100", "PAX"),
        ] {
            let mut builder = Builder::new(Vec::new());
            let records = [("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.size", size.as_bytes())];
            builder.append_pax_extensions(records).unwrap();
            builder.append_data(&mut header(EntryType::Regular, 5), "name", &b"abcde"[..]).unwrap();
            let error = entries(&builder.into_inner().unwrap()).unwrap_err().to_string();
            assert!(error.contains(expected), "{map} gave {error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let _ = entries(&bytes);
        }

        #[test]
        fn a_header_with_any_fields_does_not_make_it_panic(
            mut block in proptest::collection::vec(any::<u8>(), 512),
            kind in proptest::sample::select(&b"0\x001234567SLKxg"[..]),
            size in 0_u64..2000,
            rest in proptest::collection::vec(any::<u8>(), 0..4000),
        ) {
            block[100..148].copy_from_slice(&[b'0'; 48]);
            block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
            block[156] = kind;
            block[148..156].copy_from_slice(b"        ");
            let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            let _ = entries(&[block, rest].concat());
        }
    }
}
