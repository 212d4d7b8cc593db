//! Users and groups that images name, each with a number that stands for its name.
//!
//! containerd looks for the names of an image's `USER` in the image's own files, before it asks for a container, and the
//! node has none of those files. It finds numbers here in their place, the shim takes those back to the names, and the
//! guest looks the names up in the image. A user of whom an image gives a number alone is one of them: which group that
//! user has is in those files, too.
//!
//! Which names there are is asked of containerd, which has the configurations of the images that it pulled for this
//! snapshotter and marks them so. Nothing is kept that could be lost.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest;
use oci_spec::image::ImageConfiguration;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::proto::containerd::services::content::v1::content_client::ContentClient;
use crate::proto::containerd::services::content::v1::{ListContentRequest, ReadContentRequest};

/// The root that containerd looks at in the place of an image's, with the names of all images.
pub(crate) struct Names {
    containerd: Endpoint,
    root: PathBuf,
    known: Mutex<Known>,
}

impl Names {
    /// The root is not there yet. The endpoint is containerd's own.
    pub(crate) fn new(containerd: Endpoint, root: PathBuf) -> Self {
        Self { containerd, root, known: Mutex::default() }
    }

    /// Makes the root, with what containerd knows by now of images that it pulled for `snapshotter`. Names that can't be
    /// learned are missing there, which is an error only for a container that has one.
    ///
    /// # Errors
    /// The root can't be made.
    pub(crate) async fn root(&self, namespace: &str, snapshotter: &str) -> io::Result<PathBuf> {
        let mut known = self.known.lock().await;
        let learned = timeout(PATIENCE, known.learn(&self.containerd, namespace, snapshotter));
        match learned.await.unwrap_or_else(|_| Err(Status::deadline_exceeded("containerd does not answer"))) {
            Ok(()) => {}
            Err(error) => tracing::warn!(cause = error.message(), "users that images name may be missing"),
        }
        known.write(&self.root)?;
        Ok(self.root.clone())
    }
}

#[derive(Default)]
struct Known {
    /// Configurations that have been read, by their namespaces and digests.
    read: HashSet<(String, String)>,
    users: BTreeSet<String>,
    groups: BTreeSet<String>,
}

impl Known {
    async fn learn(&mut self, containerd: &Endpoint, namespace: &str, snapshotter: &str) -> Result<(), Status> {
        let channel = containerd.connect().await.map_err(|error| {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Status::unavailable(format!("containerd can't be reached: {cause}; next: check the key containerd"))
        })?;
        let namespace: MetadataValue<Ascii> =
            namespace.parse().map_err(|_| Status::invalid_argument("a namespace that is no header"))?;
        let mut content = ContentClient::new(channel);
        // containerd marks a configuration with the topmost layer that it has in a snapshotter.
        let filters = vec![format!("labels.\"containerd.io/gc.ref.snapshot.{snapshotter}\"")];
        let mut listed = content.list(of(&namespace, ListContentRequest { filters })).await?.into_inner();
        while let Some(part) = listed.message().await? {
            for info in part.info {
                let key = (namespace.to_str().unwrap_or_default().to_owned(), info.digest);
                if self.read.contains(&key) {
                    continue;
                }
                if let Ok(size @ 1..=MAX_CONFIG) = usize::try_from(info.size) {
                    let document = read(&mut content, &namespace, &key.1, size).await?;
                    self.add(&document);
                }
                self.read.insert(key);
            }
        }
        Ok(())
    }

    /// Takes note of whom an image runs as, if that is something that a line of those files can have.
    fn add(&mut self, document: &[u8]) {
        let Ok(image) = serde_json::from_slice::<ImageConfiguration>(document) else { return };
        let user = image.config().as_ref().and_then(|config| config.user().as_deref()).unwrap_or_default();
        let (user, group) = user.split_once(':').unwrap_or((user, ""));
        let is_of_interest = match user.parse() {
            Ok(0) => false,
            Ok(id) => group.is_empty() && id < FIRST,
            Err(_) => is_name(user),
        };
        if is_of_interest && self.users.len() < MAX_NAMES {
            self.users.insert(user.to_owned());
        }
        if group.parse::<u32>().is_err() && is_name(group) && self.groups.len() < MAX_NAMES {
            self.groups.insert(group.to_owned());
        }
    }

    /// Writes the files whole, and only where they differ: containerd may be reading them.
    fn write(&self, root: &Path) -> io::Result<()> {
        let etc = root.join("etc");
        fs::create_dir_all(&etc)?;
        let passwd = lines(&self.users, "user", |name, id| {
            // A number stays what it is, and has the group that tells that the image knows its own.
            format!("{name}:x:{}:{id}:::", name.parse().unwrap_or(id))
        });
        let group = lines(&self.groups, "group", |name, id| format!("{name}:x:{id}:"));
        for (file, text) in [("passwd", passwd), ("group", group)] {
            let (path, partial) = (etc.join(file), root.join(format!(".{file}")));
            match text {
                Some(text) if fs::read_to_string(&path).is_ok_and(|was| was == text) => {}
                Some(text) => {
                    fs::write(&partial, text)?;
                    fs::rename(&partial, &path)?;
                }
                // What containerd says of a file that it can't open has the link's target in it: the cause and the next step.
                None => match symlink(NO_NAMES, &path) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => {}
                },
            }
        }
        Ok(())
    }
}

/// The lines for names of a kind; none if there are none. Two names with the same number would be one to the shim.
fn lines(names: &BTreeSet<String>, kind: &str, line: impl Fn(&str, u32) -> String) -> Option<String> {
    let mut numbered = BTreeMap::new();
    for name in names {
        numbered.entry(number(kind, name)).or_insert(name);
    }
    let mut text = String::new();
    for (id, name) in numbered {
        let _ = writeln!(text, "{}", line(name, id));
    }
    (!text.is_empty()).then_some(text)
}

/// A number for a name, the same at all times. Nobody has it: the numbers of a node's and of an image's users are lower.
fn number(kind: &str, name: &str) -> u32 {
    let digest = digest::digest(&digest::SHA256, format!("{kind}:{name}").as_bytes());
    let start = digest.as_ref().first_chunk().copied().unwrap_or_default();
    FIRST | (u32::from_be_bytes(start) & NUMBERS)
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_NAME
        && text.chars().all(|c| c != ':' && !c.is_control() && !c.is_whitespace())
}

async fn read(
    content: &mut ContentClient<Channel>,
    namespace: &MetadataValue<Ascii>,
    digest: &str,
    size: usize,
) -> Result<Vec<u8>, Status> {
    let whole = ReadContentRequest { digest: digest.to_owned(), ..Default::default() };
    let mut parts = content.read(of(namespace, whole)).await?.into_inner();
    let mut document = Vec::with_capacity(size);
    while let Some(part) = parts.message().await? {
        document.extend_from_slice(&part.data);
        if document.len() > size {
            return Err(Status::out_of_range(format!("{digest} is longer than containerd said")));
        }
    }
    Ok(document)
}

/// A request to containerd, which keeps everything by namespaces.
fn of<T>(namespace: &MetadataValue<Ascii>, request: T) -> Request<T> {
    let mut request = Request::new(request);
    request.metadata_mut().insert("containerd-namespace", namespace.clone());
    request
}

/// containerd waits for its answer meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_CONFIG: usize = 4 << 20;
const MAX_NAMES: usize = 4096;
/// What shadow-utils take at most.
const MAX_NAME: usize = 256;
const FIRST: u32 = 0x6000_0000;
const NUMBERS: u32 = 0x0fff_ffff;
const NO_NAMES: &str = "the image's USER could not be asked of containerd; next: see the snapshotter's log, or set runAsUser and runAsGroup in the pod";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn root_of(users: &[&str]) -> (tempfile::TempDir, Known) {
        let folder = tempfile::tempdir().unwrap();
        let mut known = Known::default();
        for user in users {
            known.add(
                serde_json::json!({"architecture": "amd64", "os": "linux", "config": {"User": user},
                "rootfs": {"type": "layers", "diff_ids": []}})
                .to_string()
                .as_bytes(),
            );
        }
        known.write(folder.path()).unwrap();
        (folder, known)
    }

    fn file(root: &tempfile::TempDir, name: &str) -> String {
        fs::read_to_string(root.path().join("etc").join(name)).unwrap()
    }

    #[test]
    fn names_have_numbers_of_their_own_that_never_change() {
        let (root, mut known) = root_of(&["web:web", "1000:staff", "7:8", "0", "", "web"]);
        let (user, web, staff) = (number("user", "web"), number("group", "web"), number("group", "staff"));
        assert_eq!(file(&root, "passwd"), format!("web:x:{user}:{user}:::\n"));
        let mut groups = [format!("web:x:{web}:\n"), format!("staff:x:{staff}:\n")];
        groups.sort_by_key(|line| line.split(':').nth(2).unwrap().to_owned());
        assert_eq!(file(&root, "group"), groups.concat());
        assert!(user != web && [user, web, staff].iter().all(|id| (0x6000_0000..0x7000_0000).contains(id)));

        known.users.insert("app".to_owned());
        known.write(root.path()).unwrap();
        assert!(file(&root, "passwd").contains(&format!("web:x:{user}:")) && file(&root, "passwd").contains("app:x:"));
    }

    #[test]
    fn a_number_alone_stays_what_it_is_and_leaves_its_group_to_the_image() {
        let (root, _) = root_of(&["65532"]);
        assert_eq!(file(&root, "passwd"), format!("65532:x:65532:{}:::\n", number("user", "65532")));
    }

    #[test]
    fn without_names_containerd_says_what_can_be_done() {
        let (root, _) = root_of(&["1000:1000"]);
        for file in ["passwd", "group"] {
            let target = fs::read_link(root.path().join("etc").join(file)).unwrap();
            assert!(target.to_str().unwrap().contains("; next: "));
            assert!(target.as_os_str().len() < 255 && !target.exists());
        }
    }

    proptest! {
        /// A configuration is an image's author's: nobody may become another one's line.
        #[test]
        fn no_user_is_two_lines_or_another_one(user in "\\PC{0,300}|[a-z:\\n ]{0,12}") {
            let (root, _) = root_of(&[&user]);
            let passwd = fs::read_to_string(root.path().join("etc/passwd")).unwrap_or_default();
            prop_assert!(passwd.lines().count() <= 1);
            for line in passwd.lines() {
                prop_assert_eq!(line.split(':').count(), 7);
                prop_assert!(user.starts_with(line.split(':').next().unwrap()));
            }
        }
    }
}
