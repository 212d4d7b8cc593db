//! An image made by umoci, pushed by skopeo to a registry with TLS, and pulled as a guest pulls it.

#![allow(clippy::unwrap_used, missing_docs)]

mod lab;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use lab::{Lab, privileged, run};

#[tokio::test]
async fn a_pulled_image_is_the_tree_that_was_pushed() {
    let Some(lab) = Lab::new() else { return };
    if !privileged(&lab.path("")) {
        return;
    }
    lab.new_image();
    let root = lab.path("bundle/rootfs");
    populate(&root);
    whole_seconds(&root);
    lab.commit();
    change(&root);
    whole_seconds(&root);
    lab.commit();
    lab.push();

    let puller = lab.puller();
    let resolved = puller.resolve(&lab.reference()).await.unwrap();
    let pulled = puller.pull(&resolved, &lab.path("pod")).await.unwrap();

    assert_eq!(pulled.digest, resolved.digest);
    assert_eq!(pulled.config.config().as_ref().unwrap().cmd().as_ref().unwrap(), &["/bin/true"]);
    let (expected, actual) = (Tree::read(&root), Tree::read(&pulled.rootfs));
    for (path, entry) in &expected.0 {
        assert_eq!(Some(entry), actual.0.get(path), "{}", path.display());
    }
    assert_eq!(expected.0.len(), actual.0.len());

    puller.release(&lab.path("pod")).await.unwrap();
    assert_eq!(fs::read_dir(lab.path("work/layers")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(lab.path("work/overlay")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(lab.path("pod/rootfs")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_private_registry_is_pulled_from_under_another_name() {
    let Some(lab) = Lab::private() else { return };
    lab.new_image();
    fs::write(lab.path("bundle/rootfs/motd"), "hello").unwrap();
    lab.commit();
    lab.push();
    let accounts = |login: &str| {
        let account = format!("{{\"auths\":{{\"https://{}/v2/\":{{\"auth\":\"{login}\"}}}}}}", lab.host());
        fs::write(lab.path("auth.json"), account).unwrap();
    };
    let puller = lab.puller_with(|config| {
        let document = format!("[[registry]]\nprefix = \"*.origin.test\"\nlocation = \"{}\"\n", lab.host());
        config.registry_config = Some(image::RegistryConfig::parse(&document).unwrap());
        config.authenticated_registry_credentials_uri = Some(lab.path("auth.json").display().to_string());
    });

    accounts("bWU6b3RoZXI=");
    let error = puller.resolve("team.origin.test/team/app:v1").await.unwrap_err().to_string();
    assert!(
        error.contains("denies access: 401") && error.contains("authenticated_registry_credentials_uri"),
        "{error}"
    );

    // `echo me:secret | base64` ends in a newline.
    accounts("bWU6c2VjcmV0Cg==");
    let resolved = puller.resolve("team.origin.test/team/app:v1").await.unwrap();
    assert_eq!(resolved.reference, "team.origin.test/team/app:v1");
    let pinned = format!("team.origin.test/team/app:other@{}", resolved.digest);
    assert_eq!(puller.resolve(&pinned).await.unwrap().digest, resolved.digest);
    if privileged(&lab.path("")) {
        let unpacked = puller.unpack(&resolved, &lab.path("pod")).await.unwrap();
        let found = unpacked.layers.iter().find_map(|layer| fs::read_to_string(layer.join("motd")).ok());
        assert_eq!(found.as_deref(), Some("hello"));
    }
}

#[tokio::test]
async fn a_certificate_nobody_vouches_for_ends_the_pull() {
    let Some(lab) = Lab::new() else { return };
    let config = image::ImageConfig { work_dir: lab.path("work"), ..Default::default() };
    struct Never;
    #[async_trait::async_trait]
    impl image::LayerKeys for Never {
        async fn unwrap(
            &self,
            _: &wire::layer::AnnotationPacket,
        ) -> Result<zeroize::Zeroizing<Vec<u8>>, image::KeyError> {
            unreachable!()
        }
    }
    let puller = image::Puller::new(config, std::sync::Arc::new(Never)).unwrap();

    let error = puller.resolve(&lab.reference()).await.unwrap_err().to_string();

    assert!(error.contains("certificate") && error.contains("extra_root_certificates"), "{error}");
}

/// Everything that a layer can hold.
fn populate(root: &Path) {
    let path = |name: &str| root.join(name);
    for (name, mode) in
        [("bin", 0o755), ("etc/conf.d", 0o750), ("var/empty", 0o700), ("tmp", 0o777), ("gone/deep", 0o755)]
    {
        fs::create_dir_all(path(name)).unwrap();
        fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(path("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(path("bin/tool"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(path("bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(path("bin/tool"), path("bin/twin")).unwrap();
    symlink("/etc/conf.d", path("conf")).unwrap();
    symlink("tool", path("bin/alias")).unwrap();
    fs::write(path("etc/conf.d/empty"), "").unwrap();
    fs::write(path("etc/conf.d/owned"), "x").unwrap();
    std::os::unix::fs::chown(path("etc/conf.d/owned"), Some(1234), Some(70_000)).unwrap();
    let long = path("etc").join("n".repeat(200)).join("m".repeat(200));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("file"), "deep").unwrap();
    fs::write(path("etc").join(OsStr::from_bytes("schön".as_bytes())), "utf-8").unwrap();
    let data: Vec<u8> = (0..3_000_000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(path("data"), data).unwrap();
    fs::write(path("gone/deep/file"), "deleted by the second layer").unwrap();
    fs::write(path("etc/replaced"), "a file, then a directory").unwrap();
    run("mkfifo", &[path("tmp/pipe").to_str().unwrap()]);
    // An effective CAP_NET_RAW: binary, with a newline that ends no record.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(path("bin/tool"), "security.capability", &capability, flags).unwrap();
    rustix::fs::setxattr(path("data"), "user.note", b"kept", flags).unwrap();
}

fn change(root: &Path) {
    let path = |name: &str| root.join(name);
    fs::remove_dir_all(path("gone")).unwrap();
    fs::remove_file(path("etc/replaced")).unwrap();
    fs::create_dir(path("etc/replaced")).unwrap();
    fs::write(path("etc/replaced/file"), "new").unwrap();
    fs::write(path("etc/conf.d/empty"), "no longer").unwrap();
    fs::remove_file(path("conf")).unwrap();
}

/// umoci rounds times to seconds, up as well as down.
fn whole_seconds(path: &Path) {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

    let meta = fs::symlink_metadata(path).unwrap();
    if meta.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| whole_seconds(&entry.unwrap().path()));
    }
    let time = Timespec { tv_sec: meta.mtime(), tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

#[derive(Debug)]
struct Tree(BTreeMap<PathBuf, Item>);

#[derive(Debug, PartialEq)]
struct Item {
    mode: u32,
    owner: (u32, u32),
    mtime: i64,
    content: Vec<u8>,
    /// The first name of the same file, in the order of names.
    twin: Option<PathBuf>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Tree {
    fn read(root: &Path) -> Self {
        let mut tree = Self(BTreeMap::new());
        let mut twins = HashMap::new();
        tree.add(root, Path::new(""), &mut twins);
        tree
    }

    fn add(&mut self, root: &Path, place: &Path, twins: &mut HashMap<u64, PathBuf>) {
        let path = root.join(place);
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = match meta.file_type() {
            kind if kind.is_file() => fs::read(&path).unwrap(),
            kind if kind.is_symlink() => fs::read_link(&path).unwrap().into_os_string().into_vec(),
            _ => Vec::new(),
        };
        let twin = (meta.is_file() && meta.nlink() > 1)
            .then(|| twins.entry(meta.ino()).or_insert_with(|| place.to_owned()).clone());
        self.0.insert(
            place.to_owned(),
            Item {
                mode: meta.mode(),
                owner: (meta.uid(), meta.gid()),
                // The top directory is umoci's own in the one tree and a mount point in the other.
                mtime: if place == Path::new("") { 0 } else { meta.mtime() },
                content,
                twin,
                attributes: attributes(&path),
            },
        );
        if meta.is_dir() {
            let mut names: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            for name in names {
                self.add(root, &place.join(name), twins);
            }
        }
    }
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .filter(|name| !name.starts_with(b"trusted.overlay."))
        .map(|name| {
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}
