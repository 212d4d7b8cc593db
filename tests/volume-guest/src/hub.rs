//! Volumes as a pod's agent asks for them: from the data hub, which is a process of its own, over ttrpc.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use ttrpc::r#async::Client;
use ttrpc::context;
use wire::resource::ResourceUri;
use wire::sealed_secret::{KeyId, Payload, SealedSecret, SealingKey, Vault};
use wire_ttrpc::confidential_data_hub::SecureMountRequest;
use wire_ttrpc::confidential_data_hub_ttrpc::SecureMountServiceClient;

use crate::disks::{
    KEY, assert_nothing_left, check, check_open, device_id, fill, holds_plaintext, is_nothing_left, options_of,
};

/// What Kata's agent asks for where a pod has an encrypted emptyDir or image store.
pub async fn scratch(guestd: &str) {
    for integrity in ["false", "true"] {
        let mut hub = Hub::start(guestd).await;
        let id = device_id("ephemeral");
        let options = [
            ("deviceId", id.as_str()),
            ("sourceType", "empty"),
            ("targetType", "fileSystem"),
            ("filesystemType", "ext4"),
            ("mkfsOpts", "-E lazy_journal_init"),
            ("encryptionType", "luks2"),
            ("dataIntegrity", integrity),
        ];
        hub.mount(&options, "/run/scratch").await.unwrap();
        fill("/run/scratch/file");
        assert!(options_of("/run/scratch").contains("ext4"));
        // An agent that did not hear the answer asks again.
        hub.mount(&options, "/run/scratch").await.unwrap();
        check("/run/scratch/file");

        let refused = hub.mount(&options, "/run/elsewhere").await.unwrap_err();
        assert!(refused.starts_with("[CDH] [ERROR]: Secure Mount failed: volume device: "), "{refused}");

        assert_eq!(hub.end().await, Some(0));
        assert_nothing_left("/run/scratch");
        assert!(!holds_plaintext("ephemeral"));
    }
}

/// The key comes from a resource, and then from a secret that is sealed.
pub async fn keyed(guestd: &str) {
    let mut hub = Hub::start(guestd).await;
    let id = device_id("hub");
    let with = |source, key| {
        [
            ("deviceId", id.as_str()),
            ("sourceType", source),
            ("targetType", "fileSystem"),
            ("dataIntegrity", "true"),
            ("mapperName", MAPPING),
            ("key", key),
        ]
    };
    let missing = hub.mount(&with("empty", "kbs:///default/volume/none"), "/run/keyed").await.unwrap_err();
    assert!(missing.contains("the volume's key: kbs:///default/volume/none is in none of the files"), "{missing}");
    hub.mount(&with("empty", RESOURCE), "/run/keyed").await.unwrap();
    fill("/run/keyed/file");
    assert_eq!(hub.end().await, Some(0));
    assert_nothing_left("/run/keyed");

    let mut hub = Hub::start(guestd).await;
    let sealed = hub.sealed.clone();
    hub.mount(&with("encrypted", &sealed), "/run/keyed").await.unwrap();
    check("/run/keyed/file");
    assert_eq!(hub.end().await, Some(0));
    assert_nothing_left("/run/keyed");
}

/// A container may still read and write what it has open, for which the kernel has all that it takes.
pub async fn in_use(guestd: &str) {
    let mut hub = Hub::start(guestd).await;
    let id = device_id("hub");
    let options = [
        ("deviceId", id.as_str()),
        ("sourceType", "encrypted"),
        ("targetType", "fileSystem"),
        ("mapperName", MAPPING),
        ("key", RESOURCE),
    ];
    hub.mount(&options, "/run/used").await.unwrap();
    let open = File::open("/run/used/file").unwrap();

    assert_eq!(hub.end().await, Some(1));

    assert!(!Path::new("/run/used").exists());
    check_open(&open);
    drop(open);
    until(|| is_nothing_left("/run/used")).await;
}

/// The process, and the agent's connection to it.
struct Hub {
    process: Child,
    mounts: SecureMountServiceClient,
    /// The name of [`RESOURCE`] as a secret that only the owner can have sealed.
    sealed: String,
}

impl Hub {
    /// Starts it with upstream's flags and environment, and with the owner's resources in a file.
    async fn start(guestd: &str) -> Self {
        let key = SealingKey::generate().unwrap();
        let resources = HashMap::from([
            ("default/volume/1", STANDARD.encode(KEY)),
            ("default/signing-key/1", STANDARD.encode(key.public_jwk(None))),
        ]);
        fs::write("/run/resources.json", serde_json::to_string(&resources).unwrap()).unwrap();
        let volume = Payload::Vault(Vault::in_key_broker(&ResourceUri::parse(RESOURCE).unwrap()));
        let kid = KeyId::parse("kbs:///default/signing-key/1").unwrap();
        let sealed = SealedSecret::seal(&volume, &key, &kid).unwrap();
        let config =
            format!("socket = \"{ADDRESS}\"\n[kbc]\nname = \"offline_fs_kbc\"\n[image]\nwork_dir = \"/run/image\"\n");
        fs::write("/run/cdh.toml", config).unwrap();

        let _ = fs::remove_file(SOCKET);
        let process = Command::new(guestd)
            .args(["confidential-data-hub", "-c", "/run/cdh.toml"])
            .env("OFFLINE_FS_KBC_EXTRA_FILE_PATH", "/run/resources.json")
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        until(|| Path::new(SOCKET).exists()).await;
        let mounts = SecureMountServiceClient::new(Client::connect(ADDRESS).await.unwrap());
        Self { process, mounts, sealed }
    }

    /// What the service says against it, if it does.
    async fn mount(&self, options: &[(&str, &str)], mount_point: &str) -> Result<(), String> {
        let mut request = SecureMountRequest::new();
        request.volume_type = "block-device".to_owned();
        request.options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        request.mount_point = mount_point.to_owned();
        match self.mounts.secure_mount(context::with_duration(LIMIT), &request).await {
            Ok(_) => Ok(()),
            Err(ttrpc::Error::RpcStatus(status)) => Err(status.message),
            Err(other) => panic!("{other}"),
        }
    }

    /// Tells it to end; its exit status.
    async fn end(&mut self) -> Option<i32> {
        kill(Pid::from_raw(self.process.id().unwrap() as i32), Signal::SIGTERM).unwrap();
        tokio::time::timeout(LIMIT, self.process.wait()).await.unwrap().unwrap().code()
    }
}

/// Waits for what another process, or the kernel, is about to do.
async fn until(holds: impl Fn() -> bool) {
    let holds = async {
        let mut again = tokio::time::interval(Duration::from_millis(20));
        while !holds() {
            again.tick().await;
        }
    };
    tokio::time::timeout(LIMIT, holds).await.unwrap();
}

const SOCKET: &str = "/run/cdh.sock";
const ADDRESS: &str = "unix:///run/cdh.sock";
const RESOURCE: &str = "kbs:///default/volume/1";
const MAPPING: &str = "hub-data";
const LIMIT: Duration = Duration::from_secs(120);
