//! What copied files look like, and where none gets.

use super::*;
use proptest::prelude::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

struct Guest {
    root: tempfile::TempDir,
    copies: Copies,
    uid: i32,
    gid: i32,
}

impl Guest {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let copies = Copies::below(root.path());
        let own = root.path().metadata().unwrap();
        let (uid, gid) = (own.uid().try_into().unwrap(), own.gid().try_into().unwrap());
        Self { root, copies, uid, gid }
    }

    fn folder(&self) -> PathBuf {
        self.root.path().join("shared/containers")
    }

    fn file(&self, path: &str, data: &[u8]) -> CopyFileRequest {
        CopyFileRequest {
            path: self.folder().join(path).to_str().unwrap().into(),
            file_size: data.len().try_into().unwrap(),
            file_mode: 0o100_640,
            dir_mode: 0o750,
            uid: self.uid,
            gid: self.gid,
            data: data.into(),
            ..Default::default()
        }
    }

    fn copy(&self, request: &CopyFileRequest) -> Result<bool, Error> {
        match self.copies.receive(request)? {
            Some(arrived) => self.copies.place(arrived, None).map(|()| true),
            None => Ok(false),
        }
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.folder().join(path)).unwrap()
    }

    fn nothing_is_incoming(&self) -> bool {
        std::fs::read_dir(self.root.path().join("shared/incoming")).is_ok_and(|mut files| files.next().is_none())
    }
}

#[test]
fn files_folders_and_links_appear_as_they_were_described() {
    let guest = Guest::new();
    assert!(guest.copy(&guest.file("c1-0123456789abcdef-config/..v1/key", b"value")).unwrap());
    assert!(guest.copy(&guest.file("c1-0123456789abcdef-empty", b"")).unwrap());
    let link =
        |path: &str, target: &str| CopyFileRequest { file_mode: 0o120_777, ..guest.file(path, target.as_bytes()) };
    guest.copy(&link("c1-0123456789abcdef-config/..data", "..v1")).unwrap();
    guest.copy(&link("c1-0123456789abcdef-config/key", "..data/key")).unwrap();
    let folder = CopyFileRequest { file_mode: 0o041_777, ..guest.file("c1-0123456789abcdef-config/spool", b"") };
    guest.copy(&folder).unwrap();
    guest.copy(&folder).unwrap();

    assert_eq!(
        (guest.read("c1-0123456789abcdef-config/key"), guest.read("c1-0123456789abcdef-empty")),
        ("value".into(), String::new())
    );
    let mode = |path: &str| guest.folder().join(path).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(
        (
            mode("c1-0123456789abcdef-config/key"),
            mode("c1-0123456789abcdef-config"),
            mode("c1-0123456789abcdef-config/..v1")
        ),
        (0o640, 0o750, 0o750)
    );
    assert_eq!(mode("c1-0123456789abcdef-config/spool"), 0o1777);

    // Kubernetes updates a volume so: a new folder, and the link that leads to it in one step.
    guest.copy(&guest.file("c1-0123456789abcdef-config/..v2/key", b"newer")).unwrap();
    guest.copy(&link("c1-0123456789abcdef-config/..data", "..v2")).unwrap();
    assert_eq!(guest.read("c1-0123456789abcdef-config/key"), "newer");
    assert!(!guest.folder().join("c1-0123456789abcdef-config/..v1").exists(), "the old version is left");

    assert!(guest.nothing_is_incoming());
    guest.copy(&guest.file("c2-hosts", b"")).unwrap();
    let source = |name: &str| guest.folder().join(name).to_str().unwrap().to_owned();
    let sources = [
        source("c1-0123456789abcdef-config"),
        source("c1-0123456789abcdef-empty"),
        source("c2-hosts"),
        source("c1-0123456789abcdef-config/spool"),
        source("c1-0123456789abcdef"),
        "/etc".into(),
    ];
    let own = guest.copies.of("c1", sources.iter().map(String::as_str));
    assert_eq!(own.len(), 2);
    guest.copies.remove(&own);
    guest.copies.remove(&own);
    let left: Vec<_> = std::fs::read_dir(guest.folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["c2-hosts"]);
    guest.copies.clear();
    assert!(!guest.root.path().join("shared").exists());
}

#[test]
fn a_file_is_seen_when_all_of_it_is_there_in_whatever_order_it_came() {
    let guest = Guest::new();
    guest.copy(&guest.file("c1-f/a.txt", b"old")).unwrap();
    let part =
        |path: &str, offset: i64, data: &[u8]| CopyFileRequest { file_size: 9, offset, ..guest.file(path, data) };
    for (offset, data) in [(6, b"789"), (0, b"123")] {
        assert!(!guest.copy(&part("c1-f/a.txt", offset, data)).unwrap());
        // Another file, which differs in its last part alone, arrives at the same time.
        assert!(!guest.copy(&part("c1-f/a.yaml", offset, b"yyy")).unwrap());
        assert_eq!(guest.read("c1-f/a.txt"), "old");
    }
    // Sent anew from its beginning, the file that was never finished is forgotten.
    assert!(!guest.copy(&part("c1-f/a.yaml", 0, b"zzz")).unwrap());
    assert!(guest.copy(&part("c1-f/a.txt", 3, b"456")).unwrap());
    assert_eq!(guest.read("c1-f/a.txt"), "123456789");
    assert!(!guest.copy(&part("c1-f/a.yaml", 3, b"zzz")).unwrap());
    assert!(guest.copy(&part("c1-f/a.yaml", 6, b"zzz")).unwrap());
    assert_eq!(guest.read("c1-f/a.yaml"), "zzzzzzzzz");
    assert!(guest.nothing_is_incoming());
}

#[test]
fn nothing_is_written_outside_or_through_a_link() {
    let guest = Guest::new();
    guest.copy(&guest.file("c1-volume/file", b"x")).unwrap();
    // What a container that has the volume could do.
    symlink(guest.root.path(), guest.folder().join("c1-volume/out")).unwrap();
    let raw = |path: String| CopyFileRequest { path, ..guest.file("x", b"x") };
    let folder = guest.folder().display().to_string();
    for request in [
        raw("/tmp/x".into()),
        raw(format!("{}/shared/x", guest.root.path().display())),
        raw(folder.clone()),
        raw(format!("{folder}/../x")),
        raw(format!("{folder}/c1-volume/../../x")),
        raw(format!("{folder}/a\0b")),
        raw(format!("{folder}{}", "/a".repeat(65))),
        raw(String::new()),
        raw("c1-volume/x".into()),
        // Where volumes are made.
        guest.file("passthrough/volume/x", b"x"),
        guest.file("c1-volume/out/x", b"x"),
        guest.file("c1-volume/file/x", b"x"),
        CopyFileRequest { file_mode: 0o040_755, ..guest.file("c1-volume/out/x", b"") },
        CopyFileRequest { file_mode: 0o120_777, ..guest.file("c1-link", b"/etc/shadow") },
        CopyFileRequest { file_mode: 0o120_777, ..guest.file("c1-volume/link", b"\xff") },
        CopyFileRequest { file_mode: 0o120_777, ..guest.file("c1-volume/link", b"") },
        CopyFileRequest { file_mode: 0o060_660, ..guest.file("c1-volume/disk", b"") },
        CopyFileRequest { uid: -1, ..guest.file("c1-volume/x", b"x") },
        CopyFileRequest { offset: -1, ..guest.file("c1-volume/x", b"x") },
        CopyFileRequest { offset: 1, ..guest.file("c1-volume/x", b"x") },
        CopyFileRequest { file_size: -1, ..guest.file("c1-volume/x", b"x") },
        CopyFileRequest { file_size: 5, ..guest.file("c1-volume/x", b"") },
    ] {
        assert!(guest.copy(&request).is_err(), "{request:?}");
    }
    assert!(!guest.root.path().join("x").exists() && !guest.root.path().join("shared/x").exists());
    // A link in the way is replaced and not followed.
    guest.copy(&guest.file("c1-volume/out", b"inside")).unwrap();
    assert_eq!(guest.read("c1-volume/out"), "inside");
    assert!(guest.nothing_is_incoming());
}

#[test]
fn a_sealed_secret_is_told_from_other_files() {
    let guest = Guest::new();
    let sealed = |text: &[u8]| {
        let mut arrived = guest.copies.receive(&guest.file("c1-s/key", text)).unwrap().unwrap();
        let sealed = arrived.sealed().unwrap();
        guest.copies.place(arrived, sealed.is_some().then_some(b"opened")).unwrap();
        (sealed.map(|text| text.to_string()), guest.read("c1-s/key"))
    };
    assert_eq!(sealed(b"sealed.a.b\n"), (Some("sealed.a.b".into()), "opened".into()));
    assert_eq!(sealed(b"seal"), (None, "seal".into()));
    assert_eq!(sealed(b"not sealed.a"), (None, "not sealed.a".into()));
}

#[test]
fn an_old_version_goes_and_nothing_else() {
    let guest = Guest::new();
    let link = |path: &str, target: &str| {
        guest.copy(&CopyFileRequest { file_mode: 0o120_777, ..guest.file(path, target.as_bytes()) }).unwrap();
    };
    let is_there = |path: &str| guest.folder().join(path).symlink_metadata().is_ok();
    for file in ["..v1/sub/key", "..v2/key", "..v3/key", "plain/key", "..other/key"] {
        guest.copy(&guest.file(&format!("c1-s/{file}"), b"x")).unwrap();
    }
    // Wherever a container makes the old version lead.
    guest.copy(&guest.file("c1-s/outside", b"x")).unwrap();
    symlink(guest.folder().join("c1-s/plain"), guest.folder().join("c1-s/..v1/sub/out")).unwrap();
    symlink("plain", guest.folder().join("c1-s/..link")).unwrap();

    // The same again, and what is no name of a version: nothing goes.
    for (before, now) in [
        ("..v1", "..v1"),
        ("plain", "..v2"),
        ("..v1/sub", "..v2"),
        ("..v1", "..v1/sub"),
        ("..v1", "plain"),
        ("./..v1", "..v2"),
        ("../c1-s/..v1", "..v2"),
        ("..", "..v2"),
        ("..data", "..v2"),
        ("..link", "..v2"),
        ("..none", "..v2"),
    ] {
        guest.copies.remove(&[guest.folder().join("c1-s/..data")]);
        link("c1-s/..data", before);
        link("c1-s/..data", now);
        for path in ["..v1/sub/key", "..v2/key", "plain/key", "..link", "..data"] {
            assert!(is_there(&format!("c1-s/{path}")), "{path} is gone: {before} {now}");
        }
    }
    // Another link's old target is no version.
    link("c1-s/data", "..v1");
    link("c1-s/data", "..v2");
    assert!(is_there("c1-s/..v1"));

    guest.copies.remove(&[guest.folder().join("c1-s/..data")]);
    link("c1-s/..data", "..v1");
    link("c1-s/..data", "..v2");
    assert!(!is_there("c1-s/..v1"));
    link("c1-s/..data", "..v3");
    assert!(!is_there("c1-s/..v2"));
    for path in ["..v3/key", "..other/key", "plain/key", "outside"] {
        assert!(is_there(&format!("c1-s/{path}")), "{path} is gone");
    }
}

#[test]
fn what_was_copied_for_nobody_goes_by_its_name() {
    let guest = Guest::new();
    let digest = "0123456789abcdef";
    for file in [format!("web-{digest}-s/key"), format!("web-{digest}-hosts"), format!("web-1-{digest}-s/key")] {
        guest.copy(&guest.file(&file, b"x")).unwrap();
    }
    let part =
        |container: &str| CopyFileRequest { file_size: 9, ..guest.file(&format!("{container}-{digest}-p"), b"x") };
    for container in ["web", "web-1"] {
        assert!(!guest.copy(&part(container)).unwrap());
    }

    let left = guest.copies.named_after("web");
    assert_eq!(left.len(), 3);
    guest.copies.remove(&left);

    assert!(guest.copies.named_after("web").is_empty() && guest.copies.named_after("we").is_empty());
    assert_eq!(guest.copies.named_after("web-1").len(), 2);
    let incoming = guest.root.path().join("shared/incoming");
    assert_eq!(std::fs::read_dir(incoming).unwrap().count(), 1);
}

proptest! {
    #[test]
    fn no_path_leads_out(path in "(/|\\.|a|\\.\\.){0,12}") {
        let guest = Guest::new();
        let path = format!("{}/{path}", guest.folder().display());
        let _ = guest.copy(&CopyFileRequest { path, ..guest.file("x", b"x") });
        let around: Vec<_> = std::fs::read_dir(guest.root.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        prop_assert!(around.iter().all(|name| name == "shared"));
    }
}
