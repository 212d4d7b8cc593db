//! One pull as a guest does it, in a process of its own.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use image::{ImageConfig, KeyError, LayerKeys, Puller};
use wire::layer::AnnotationPacket;
use zeroize::Zeroizing;

/// What to pull.
#[derive(clap::Args)]
pub struct Arguments {
    image: String,
    #[arg(long)]
    work_dir: PathBuf,
    /// The registry's certificate authority in PEM.
    #[arg(long)]
    authority: PathBuf,
    /// The key encryption key of its layers.
    #[arg(long)]
    key: Option<PathBuf>,
}

impl Arguments {
    /// Pulls and ends the process, so that what was unpacked is not removed on its time.
    pub fn run(&self) {
        // As many threads as guestd has.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let config = ImageConfig {
                work_dir: self.work_dir.clone(),
                extra_root_certificates: vec![fs::read_to_string(&self.authority).unwrap()],
                ..Default::default()
            };
            let key = self.key.as_ref().map(|path| Zeroizing::new(fs::read(path).unwrap()));
            let puller = Puller::new(config, Arc::new(Key(key))).unwrap();
            let resolved = puller.resolve(&self.image).await.unwrap();
            puller.unpack(&resolved, &self.work_dir.join("bundle")).await.unwrap();
            std::process::exit(0)
        })
    }
}

/// Unwraps with one key, as the data hub does once Trustee has released it.
struct Key(Option<Zeroizing<Vec<u8>>>);

#[async_trait::async_trait]
impl LayerKeys for Key {
    async fn unwrap(&self, packet: &AnnotationPacket) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let key = self.0.as_ref().ok_or_else(|| KeyError::new("there is no key"))?;
        packet.unwrap(key).map_err(KeyError::new)
    }
}
