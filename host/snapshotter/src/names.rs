//! Users and groups that images name, each with a number that stands for its name.
//!
//! containerd looks for the names of an image's `USER` in the image's own files, before it asks for a container, and the
//! node has none of those files. It finds numbers here in their place, the shim takes those back to the names, and the
//! guest looks the names up in the image. A user of whom an image gives a number is one of them: which group that user
//! has is in those files, too.
//!
//! Whom an image names is asked of containerd, which has the configuration of each image, and marks it with the topmost layer
//! that it has in a snapshotter. Nothing is kept that could be lost.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest;
use oci_spec::image::ImageConfiguration;
use tokio::time::timeout;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use wire::named_user::NUMBERS;

use crate::proto::containerd::services::content::v1::content_client::ContentClient;
use crate::proto::containerd::services::content::v1::{ListContentRequest, ReadContentRequest};
use crate::snapshots::{chain_id, namespace};

/// The roots that containerd looks at in the place of images', one for each topmost layer.
pub(crate) struct Names {
    containerd: Endpoint,
    roots: PathBuf,
    writing: Mutex<()>,
}

impl Names {
    /// No root is there yet. The endpoint is containerd's own.
    pub(crate) fn new(containerd: Endpoint, roots: PathBuf) -> Self {
        Self { containerd, roots, writing: Mutex::default() }
    }

    /// Makes the root for a container above a layer, with what containerd knows of images that end with it. Of a layer that is
    /// not known, it has the names of all images. Names that can't be learned are missing there, which is an error only for a
    /// container that has one.
    ///
    /// # Errors
    /// The root can't be made.
    pub(crate) async fn root(&self, snapshotter: &str, container: &str, layer: &str) -> io::Result<PathBuf> {
        let chain_id = chain_id(layer);
        let learned = timeout(PATIENCE, learn(&self.containerd, namespace(container), snapshotter, chain_id));
        let names = match learned.await.unwrap_or_else(|_| Err(Status::deadline_exceeded("containerd does not answer")))
        {
            Ok(names) => names,
            Err(error) => {
                tracing::warn!(container, cause = error.message(), "the user that the image names is not known");
                Found::default()
            }
        };
        let root = self.path(chain_id);
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        names.write(&root)?;
        Ok(root)
    }

    /// Forgets the root for containers above a layer that is removed.
    pub(crate) fn forget(&self, layer: &str) {
        if chain_id(layer).is_some() {
            let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
            // One that stays is two files in /run.
            let _ = fs::remove_dir_all(self.path(chain_id(layer)));
        }
    }

    fn path(&self, chain_id: Option<&str>) -> PathBuf {
        self.roots.join(chain_id.map_or(ANY, |it| it.trim_start_matches("sha256:")))
    }
}

/// The names that were found, each once.
#[derive(Debug, Default, PartialEq)]
struct Found {
    users: Vec<String>,
    groups: Vec<String>,
}

impl Found {
    /// Takes note of whom an image runs as, if that is something that a line of those files can have.
    fn add(&mut self, document: &[u8]) -> Result<(), serde_json::Error> {
        let image: ImageConfiguration = serde_json::from_slice(document)?;
        let user = image.config().as_ref().and_then(|config| config.user().as_deref()).unwrap_or_default();
        let (user, group) = user.split_once(':').unwrap_or((user, ""));
        let user = match user.parse::<u32>() {
            // Root's group is 0 everywhere.
            Ok(0) => None,
            Ok(id) => (id < *NUMBERS.start()).then(|| id.to_string()),
            Err(_) => is_name(user).then(|| user.to_owned()),
        };
        let group = (group.parse::<u32>().is_err() && is_name(group)).then(|| group.to_owned());
        for (name, names) in [(user, &mut self.users), (group, &mut self.groups)] {
            names.extend(name.filter(|name| !names.contains(name)));
        }
        Ok(())
    }

    /// Writes the files whole, and only where they differ: containerd may be reading them.
    fn write(&self, root: &Path) -> io::Result<()> {
        let etc = root.join("etc");
        fs::create_dir_all(&etc)?;
        let passwd = self.users.iter().map(|name| {
            let id = number("user", name);
            // A number stays what it is, and has the group that tells that the image knows its own.
            format!("{name}:x:{}:{id}:::\n", name.parse().unwrap_or(id))
        });
        let group = self.groups.iter().map(|name| format!("{name}:x:{}:\n", number("group", name)));
        for (file, text) in [("passwd", passwd.collect::<String>()), ("group", group.collect())] {
            let (path, partial) = (etc.join(file), root.join(format!(".{file}")));
            if text.is_empty() {
                // What containerd says of a file that it can't open has the link's target in it: the cause and the next step.
                match symlink(NO_NAMES, &path) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => {}
                }
            } else if !fs::read_to_string(&path).is_ok_and(|was| was == text) {
                fs::write(&partial, text)?;
                fs::rename(&partial, &path)?;
            }
        }
        Ok(())
    }
}

/// Asks containerd for the configurations of images, and whom they name.
async fn learn(
    containerd: &Endpoint,
    namespace: &str,
    snapshotter: &str,
    chain_id: Option<&str>,
) -> Result<Found, Status> {
    let channel = containerd.connect().await.map_err(|error| {
        let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        Status::unavailable(format!(
            "containerd can't be reached: {cause}; next: check the key containerd, or --containerd"
        ))
    })?;
    let namespace: MetadataValue<Ascii> =
        namespace.parse().map_err(|_| Status::invalid_argument("a namespace that is no header"))?;
    let mut content = ContentClient::new(channel);
    let value = chain_id.map_or_else(String::new, |chain_id| format!("==\"{chain_id}\""));
    let filters = vec![format!("labels.\"containerd.io/gc.ref.snapshot.{snapshotter}\"{value}")];
    let mut listed = content.list(of(&namespace, ListContentRequest { filters })).await?.into_inner();
    let mut configurations = Vec::new();
    while let Some(part) = listed.message().await? {
        configurations.extend(part.info);
        if configurations.len() > MAX_IMAGES {
            return Err(Status::out_of_range(format!("containerd has more than {MAX_IMAGES} images with that layer")));
        }
    }
    let mut found = Found::default();
    for info in configurations {
        let added = match usize::try_from(info.size) {
            Ok(size @ 1..=MAX_CONFIG) => match read(&mut content, &namespace, &info.digest, size).await {
                Ok(document) => found.add(&document).map_err(|error| error.to_string()),
                Err(error) => Err(error.message().to_owned()),
            },
            _ => Err(format!("its {} bytes are no configuration's", info.size)),
        };
        // Others are as good as they were.
        if let Err(cause) = added {
            tracing::warn!(digest = info.digest, cause, "an image's configuration can't be read");
        }
    }
    Ok(found)
}

/// A number for a name, the same at all times.
fn number(kind: &str, name: &str) -> u32 {
    let digest = digest::digest(&digest::SHA256, format!("{kind}:{name}").as_bytes());
    let start = digest.as_ref().first_chunk().copied().unwrap_or_default();
    NUMBERS.start() | (u32::from_be_bytes(start) & (NUMBERS.end() ^ NUMBERS.start()))
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
/// Images that differ in their configurations alone, or all of a node.
const MAX_IMAGES: usize = 4096;
/// What shadow-utils take at most.
const MAX_NAME: usize = 256;
/// The root for layers that are not known.
const ANY: &str = "any";
const NO_NAMES: &str = "the image's USER could not be asked of containerd; next: see the snapshotter's log, or set runAsUser and runAsGroup in the pod";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn root_of(users: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut found = Found::default();
        for user in users {
            let image = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {"User": user},
                "rootfs": {"type": "layers", "diff_ids": []}});
            found.add(image.to_string().as_bytes()).unwrap();
        }
        found.write(folder.path()).unwrap();
        folder
    }

    fn file(root: &tempfile::TempDir, name: &str) -> String {
        fs::read_to_string(root.path().join("etc").join(name)).unwrap()
    }

    #[test]
    fn names_have_numbers_of_their_own_that_never_change() {
        let (user, web, staff) = (number("user", "web"), number("group", "web"), number("group", "staff"));
        for _ in 0..2 {
            let root = root_of(&["web:web", "web:staff", "0", "", "web"]);
            assert_eq!(file(&root, "passwd"), format!("web:x:{user}:{user}:::\n"));
            assert_eq!(file(&root, "group"), format!("web:x:{web}:\nstaff:x:{staff}:\n"));
        }
        assert!(user != web && [user, web, staff].iter().all(|id| NUMBERS.contains(id)));
    }

    #[test]
    fn a_number_stays_what_it_is_and_leaves_its_group_to_the_image() {
        let root = root_of(&["65532", "065532", "65532:7"]);
        assert_eq!(file(&root, "passwd"), format!("65532:x:65532:{}:::\n", number("user", "65532")));
        assert!(fs::read_link(root.path().join("etc/group")).is_ok());
    }

    #[test]
    fn without_names_containerd_says_what_can_be_done() {
        let root = root_of(&[""]);
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
            let root = root_of(&[&user]);
            let passwd = fs::read_to_string(root.path().join("etc/passwd")).unwrap_or_default();
            prop_assert!(passwd.lines().count() <= 1);
            for line in passwd.lines() {
                prop_assert_eq!(line.split(':').count(), 7);
                let name = line.split(':').next().unwrap();
                prop_assert!(user.trim_start_matches(['0', '+']).starts_with(name) || user.starts_with(name));
            }
        }
    }
}
