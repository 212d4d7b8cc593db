//! The Trustee that targets send to: in memory, with the sample TEE, at a time that stands still.

#![forbid(unsafe_code)]

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use attestation::policy;
use attestation::verifier::Enabled;
use attestation::{AttestationService, Settings};
use reference_values::ReferenceValues;
use store::Store;
use store::clock::Clock;
use tokio::runtime::{Builder, Runtime};

/// What evidence is verified and reference values are registered with.
pub struct Trustee {
    pub runtime: Runtime,
    pub store: Store,
    pub values: ReferenceValues,
    pub service: Arc<AttestationService>,
}

impl Trustee {
    /// One that has nothing registered and the policies that are shipped.
    pub fn start() -> Self {
        let runtime = runtime();
        let (store, values, service) = runtime.block_on(async {
            let store = Store::memory().await.expect("a store");
            let unsigned = reference_values::Settings { allow_unsigned: true, ..Default::default() };
            let values = ReferenceValues::load(store.clone(), clock(), unsigned).await.expect("reference values");
            let settings = Settings { enabled: Enabled { sample: true }, ..Settings::default() };
            let source = Arc::new(values.clone());
            let service = AttestationService::load(store.clone(), source, settings, clock()).await.expect("a service");
            (store, values, service)
        });
        Self { runtime, store, values, service }
    }

    /// Does work on a thread whose stack policies fit on.
    pub fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.runtime.block_on(self.runtime.spawn(work)).expect("a panic has ended the process before")
    }
}

/// A runtime with one thread for requests.
pub fn runtime() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.enable_all().worker_threads(1).thread_stack_size(STACK).build().expect("a runtime")
}

/// Always [`NOW`].
pub fn clock() -> Clock {
    Clock::set_by(Arc::new(AtomicU64::new(NOW)))
}

/// An empty folder for the files of this process.
pub fn folder(target: &str) -> PathBuf {
    let parent = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fuzz/files");
    let folder = parent.join(format!("{target}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("the folder of the build");
    folder
}

/// Seconds since 1970.
pub const NOW: u64 = 2_000_000_000;
/// The sanitizer makes frames several times larger.
pub const STACK: usize = 4 * policy::STACK;
