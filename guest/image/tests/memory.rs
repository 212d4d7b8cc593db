//! The memory of a pull does not grow with the image.

#![allow(clippy::unwrap_used, missing_docs)]

mod lab;

use std::fs::{self, File};
use std::io::{self, Read as _};

use lab::Lab;

#[tokio::test]
async fn a_large_layer_is_pulled_in_little_memory() {
    let Some(lab) = Lab::new() else { return };
    if !lab::privileged(&lab.path("")) {
        return;
    }
    lab.new_image();
    let mut noise = File::open("/dev/urandom").unwrap().take(SIZE);
    io::copy(&mut noise, &mut File::create(lab.path("bundle/rootfs/large")).unwrap()).unwrap();
    lab.commit();
    lab.push();
    let puller = lab.puller();
    let resolved = puller.resolve(&lab.reference()).await.unwrap();
    let before = peak();

    let unpacked = puller.unpack(&resolved, &lab.path("pod")).await.unwrap();

    let grown = peak() - before;
    assert_eq!(fs::metadata(unpacked.layers[0].join("large")).unwrap().len(), SIZE);
    assert!(grown < SIZE / 16, "{grown} bytes for {SIZE}");
}

/// The most memory that this process ever had, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

const SIZE: u64 = 256 << 20;
