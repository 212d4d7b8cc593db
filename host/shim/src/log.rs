//! The shim's log: the fifo in the bundle that containerd copies to its own log.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;

use crate::bundle::Bundle;

/// Sends the log of this process to containerd. Without a fifo there is nowhere to send it.
pub(crate) fn start(bundle: &Bundle, debug: bool) {
    let Some(fifo) = open(bundle) else { return };
    let level = if debug { "debug,h2=info,ttrpc=info" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(Mutex::new(fifo));
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
