//! Why a guest image could not be built or opened.

use std::io;
use std::path::PathBuf;

/// Names the stage, the cause and what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read, written, made or locked.
    #[error("guest image: {} can't be {done}: {cause}; next: check the path, its permissions and the free space", path.display())]
    Io {
        /// What was attempted, as a participle.
        done: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// A file is larger than such a file can reasonably be.
    #[error("guest image: {} has more than {limit} bytes; next: check that it is the right file", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound, in bytes.
        limit: u64,
    },
    /// The given guestd can't be the first process of an initramfs.
    #[error("guest image: {} can't be the guest's init: {reason}; next: pass a guestd built for x86-64 with +crt-static", path.display())]
    Guestd {
        /// The file given as guestd.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A program that was to be in the image can't be.
    #[error("guest image: {} can't be in the image: {reason}; next: install its package, or leave it out", path.display())]
    Program {
        /// The program, or a library that it needs.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tool of the distribution is missing.
    #[error("kernel download: {tool} can't be run: {cause}; next: build on Debian, or pass --kernel and --modules")]
    Tool {
        /// The program's name.
        tool: &'static str,
        /// The system's answer.
        cause: io::Error,
    },
    /// apt's configuration has no archive to take the kernel from.
    #[error(
        "kernel download: apt is configured with no Debian archive; next: add one to apt's sources, or pass --kernel and --modules"
    )]
    NoArchive,
    /// apt or dpkg ended with an error.
    #[error(
        "kernel download: `{command}` failed: {output}; next: check that apt reaches its archive (apt-get update), or pass --kernel and --modules"
    )]
    Download {
        /// Program and subcommand.
        command: String,
        /// The end of what it printed.
        output: String,
    },
    /// The archive answers, but does not have the kernel.
    #[error("kernel download: apt has no package {package} in {suite}; next: pass --kernel and --modules")]
    NoPackage {
        /// The package looked for.
        package: &'static str,
        /// The suite looked in.
        suite: &'static str,
    },
    /// The downloaded package is not laid out like a kernel package.
    #[error("kernel download: package {package} holds no {what}; next: pass --kernel and --modules")]
    Package {
        /// The package's name and version.
        package: String,
        /// What was not found in it.
        what: &'static str,
    },
    /// The kernel is not an x86 boot image, or is damaged.
    #[error("guest image: the kernel can't be used: {0}; next: pass an x86-64 bzImage (vmlinuz) with --kernel")]
    BzImage(String),
    /// The kernel or a module is compressed in a way that is not read here, or is damaged.
    #[error(
        "guest image: {what} can't be unpacked: {reason}; next: use one packed with zstd, gzip or xz, and undamaged"
    )]
    Unpack {
        /// The kernel, or which module.
        what: String,
        /// The compression and what went wrong.
        reason: String,
    },
    /// A module the guest needs is neither in the module tree nor built into the kernel.
    #[error(
        "guest image: kernel module {name} is not in {} and not built in; next: use a kernel that has it", tree.display()
    )]
    NoModule {
        /// The module's name.
        name: String,
        /// Where it was looked for.
        tree: PathBuf,
    },
    /// A module can't be loaded into the kernel it comes with.
    #[error(
        "guest image: kernel module {name} can't be used: {reason}; next: pass the --modules that belong to --kernel"
    )]
    Module {
        /// The module's name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The image's manifest can't be read.
    #[error("guest image: {} is not a manifest: {reason}; next: build the image again", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of the image is not the one the manifest describes.
    #[error("guest image: {} is not the file its manifest describes; next: build the image again", path.display())]
    Altered {
        /// The file.
        path: PathBuf,
    },
}
