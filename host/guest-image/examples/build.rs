//! Builds a guest image with Debian's kernel: `build GUESTD CACHE OUTPUT`.

use std::path::PathBuf;
use std::process::ExitCode;

use guest_image::{BuildOptions, KernelSource, build};

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [guestd, cache, output] = &arguments[..] else {
        eprintln!("usage: build GUESTD CACHE OUTPUT");
        return ExitCode::FAILURE;
    };
    let options = BuildOptions {
        guestd: guestd.clone(),
        kernel: KernelSource::Debian,
        cache: cache.clone(),
        output: output.clone(),
    };
    match build(&options) {
        Ok(image) => {
            println!("{}: {} bytes", image.kernel.display(), image.manifest.vmlinux.size);
            println!("{}: {} bytes", image.initramfs.display(), image.manifest.initramfs.size);
            println!("{}", image.manifest.command_line);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
