//! The shim's log: the fifo in the bundle that containerd copies to its own log.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::bundle::Bundle;

/// Sends the log of this process to containerd. Without a fifo there is nowhere to send it.
pub(crate) fn start(bundle: &Bundle, debug: bool) {
    let Some(fifo) = open(bundle) else { return };
    // Not EnvFilter: its regular expressions would be a good part of this process's memory.
    let named = std::env::var("RUST_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let level = if debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let filter = named.unwrap_or_else(|| Targets::new().with_default(level).with_target("ttrpc", LevelFilter::INFO));
    let lines = layer().with_ansi(false).with_writer(Mutex::new(fifo));
    let subscriber = tracing_subscriber::registry().with(lines).with(filter);
    if subscriber.try_init().is_ok() {
        // Standard error leads nowhere.
        std::panic::set_hook(Box::new(|panic| tracing::error!("the shim has a defect: {panic}")));
    }
}

/// Opened for reading too, the fifo outlives containerd's restarts; without waiting, a full one costs lines and no time.
fn open(bundle: &Bundle) -> Option<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(bundle.path().join("log")).ok()
}
