//! Builds the guest's kernel and initramfs so that the same inputs give the same bytes, and says what they measure to.
//!
//! A guest image is a folder:
//!
//! | file | what it is |
//! |---|---|
//! | `bzImage` | the kernel as its distribution signed it: what a measured boot loads |
//! | `vmlinux` | the same kernel uncompressed, for QEMU's PVH boot: fast, never measured, for tests and development |
//! | `initramfs` | uncompressed cpio: guestd as `/init`, kernel modules, `/etc/cocoon/modules` with their load order |
//! | `manifest.json` | release, sizes and digests of the above, modules, kernel command line |
//! | `reference-values.json` | the digests a relying party expects, in the form of Trustee's `sample` extractor |
//!
//! Nothing in it depends on the clock, the builder's user, paths or the order of a directory listing. The kernel is
//! the one found in the cache, else the newest of its series; remove the cache to take a newer one.
//!
//! **Not computed:** the launch measurements of SEV-SNP and TDX (`MEASUREMENT`, `MRTD`, `RTMR`). They also cover the
//! firmware file and the virtual machine's shape, which are chosen where the guest is started.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod apt;
mod compression;
mod cpio;
mod error;
mod executable;
mod files;
mod initramfs;
mod kernel;
mod manifest;
mod modules;
mod programs;
#[cfg(test)]
mod synthetic;
mod vmlinux;

use std::fs;
use std::path::{Path, PathBuf};

pub use error::Error;
pub use kernel::KernelSource;
pub use manifest::{Artifact, Manifest};
use modules::ModuleTree;
use vmlinux::BzImage;

/// What a guest image is made of and where it goes.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The statically linked `guestd`, x86-64. Symbols and debug sections are cut off; the file itself stays as it is.
    pub guestd: PathBuf,
    /// Where the kernel and its modules come from.
    pub kernel: KernelSource,
    /// Keeps the downloaded kernel between builds; made if absent, safe to share between concurrent builds.
    pub cache: PathBuf,
    /// The image's folder; made if absent, an older image in it is replaced.
    pub output: PathBuf,
}

/// A complete guest image on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct GuestImage {
    /// The uncompressed kernel with a PVH entry, for boots that nobody measures.
    pub kernel: PathBuf,
    /// The distribution's kernel image, for measured boots.
    pub bzimage: PathBuf,
    /// The initramfs that goes with both.
    pub initramfs: PathBuf,
    /// What the files are.
    pub manifest: Manifest,
}

/// Builds a guest image and writes it to `options.output`.
///
/// Takes about two seconds, and the network only while the cache holds no kernel.
///
/// # Errors
/// [`Error`] with stage, cause and next step. A failed or interrupted build leaves either the older image or a folder
/// that [`GuestImage::open`] refuses.
pub fn build(options: &BuildOptions) -> Result<GuestImage, Error> {
    build_with_programs(options, &[])
}

/// The same with programs of this machine beside guestd, each with the shared libraries that it needs.
///
/// The bytes are those of this machine's packages, so that the same image needs the same packages.
///
/// # Errors
/// Those of [`build`], and [`Error::Program`].
pub fn build_with_programs(options: &BuildOptions, programs: &[PathBuf]) -> Result<GuestImage, Error> {
    let programs = programs::collect(programs)?;
    let guestd = executable::strip(files::read(&options.guestd, MAX_GUESTD)?)
        .map_err(|reason| Error::Guestd { path: options.guestd.clone(), reason })?;

    let kernel = options.kernel.obtain(&options.cache)?;
    let packed = files::read(&kernel.bzimage, MAX_BZIMAGE)?;
    let bzimage = BzImage::parse(&packed)?;
    let vmlinux = bzimage.vmlinux()?;
    let modules = ModuleTree::open(&kernel.modules)?.closure(initramfs::MODULES, bzimage.release())?;
    let names = modules.iter().flatten().map(|module| module.file_name.clone()).collect();
    let initramfs = initramfs::compose(guestd, modules, programs);

    let manifest = Manifest {
        schema: manifest::SCHEMA,
        kernel_release: bzimage.release().to_owned(),
        kernel_package: kernel.package,
        command_line: COMMAND_LINE.to_owned(),
        modules: names,
        vmlinux: Artifact::of(&vmlinux),
        bzimage: Artifact::of(&packed),
        initramfs: Artifact::of(&initramfs),
    };
    write(&options.output, &manifest, [(VMLINUX, &vmlinux), (BZIMAGE, &packed), (INITRAMFS, &initramfs)])?;
    Ok(GuestImage::at(&options.output, manifest))
}

impl GuestImage {
    /// Opens the image in `folder` and checks every file against the manifest's sizes and digests, in memory that does
    /// not depend on their sizes.
    ///
    /// That guards against half-written and mixed-up files. It proves nothing to an owner, since whoever changes a file
    /// can change the manifest too: that is what attestation and the reference values are for.
    ///
    /// # Errors
    /// [`Error::Manifest`] if the manifest can't be parsed, [`Error::Altered`] naming the first file that is not as
    /// the manifest says, [`Error::Io`] if one is missing.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(MANIFEST);
        let manifest = Manifest::parse(&files::read(&path, MAX_MANIFEST)?)
            .map_err(|reason| Error::Manifest { path: path.clone(), reason })?;
        for (name, artifact) in
            [(VMLINUX, &manifest.vmlinux), (BZIMAGE, &manifest.bzimage), (INITRAMFS, &manifest.initramfs)]
        {
            let path = folder.join(name);
            let file = fs::File::open(&path).map_err(files::failed("read", &path))?;
            let found = file.metadata().map_err(files::failed("read", &path))?.len();
            if found != artifact.size || Artifact::read(file).map_err(files::failed("read", &path))? != *artifact {
                return Err(Error::Altered { path });
            }
        }
        Ok(Self::at(folder, manifest))
    }

    fn at(folder: &Path, manifest: Manifest) -> Self {
        Self {
            kernel: folder.join(VMLINUX),
            bzimage: folder.join(BZIMAGE),
            initramfs: folder.join(INITRAMFS),
            manifest,
        }
    }
}

/// Writes the manifest last, so that a folder with a manifest that fits its files is a complete image.
fn write(output: &Path, manifest: &Manifest, artifacts: [(&str, &Vec<u8>); 3]) -> Result<(), Error> {
    fs::create_dir_all(output).map_err(files::failed("made", output))?;
    let _lock = files::lock(output)?;
    for (name, bytes) in artifacts {
        files::write(&output.join(name), bytes)?;
    }
    files::write(&output.join(REFERENCE_VALUES), &manifest.reference_values())?;
    files::write(&output.join(MANIFEST), &manifest.to_json())
}

/// The kernel command line the image is made for. Measured, so part of what an owner agrees to.
///
/// - `console=ttyS0 quiet`: only errors reach the serial port, which the host reads.
/// - `panic=-1`: a panic ends the machine at once, and never leaves a half-dead guest serving requests.
/// - `random.trust_bootloader=off`: a seed from the host counts for nothing.
/// - `cryptomgr.notests`: skips self-tests of ciphers, 0.4 s under emulation; it changes no algorithm.
/// - `no_timer_check`: a virtual timer has no wiring to be tested, and on a busy host the test takes a late tick for a broken
///   one and panics.
/// - `initcall_blacklist`: tracing's name tables and congestion control written in BPF, which no guest uses; together
///   0.1 s under emulation. The jitter random source stays, since it does not cost enough to be missed.
///
/// Module signatures and lockdown are not asked for here: modules carry no signature, since they are measured with the
/// initramfs, and guestd forbids all loading and locks the kernel down before a container can exist.
pub const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 random.trust_bootloader=off cryptomgr.notests no_timer_check \
     initcall_blacklist=bpf_tcp_ca_kfunc_init,bpf_dummy_struct_ops_init,trace_eval_init,register_warn_debugfs";

const VMLINUX: &str = "vmlinux";
const BZIMAGE: &str = "bzImage";
const INITRAMFS: &str = "initramfs";
const MANIFEST: &str = "manifest.json";
const REFERENCE_VALUES: &str = "reference-values.json";
const MAX_GUESTD: u64 = 256 << 20;
const MAX_BZIMAGE: u64 = 128 << 20;
const MAX_MANIFEST: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::synthetic::{bzimage, executable, gzip, module, module_tree};

    const RELEASE: &str = "6.12.0-cloud";

    /// A kernel with every module a guest needs, a guestd, and the options that build an image of them.
    fn inputs(folder: &Path) -> BuildOptions {
        let vmlinux = b"\x7fELF and the rest of a kernel";
        let packed = gzip(vmlinux);
        fs::write(folder.join("vmlinuz"), bzimage(RELEASE, &packed[..packed.len() - 4], vmlinux.len() as u32)).unwrap();
        let modules: Vec<_> =
            initramfs::MODULES.concat().iter().map(|name| (format!("kernel/{name}.ko"), module("", RELEASE))).collect();
        let modules: Vec<_> = modules.iter().map(|(path, bytes)| (path.as_str(), bytes.clone())).collect();
        module_tree(&folder.join("modules"), &modules);
        fs::write(folder.join("guestd"), executable(b"guestd", b"debug information")).unwrap();
        BuildOptions {
            guestd: folder.join("guestd"),
            kernel: KernelSource::Files { kernel: folder.join("vmlinuz"), modules: folder.join("modules") },
            cache: folder.join("cache"),
            output: folder.join("image"),
        }
    }

    fn content(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        entries.map(|entry| (entry.file_name().into(), fs::read(entry.path()).unwrap())).collect()
    }

    #[test]
    fn two_builds_of_the_same_inputs_give_the_same_bytes() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (first, second) = (inputs(first.path()), inputs(second.path()));
        build(&first).unwrap();
        build(&second).unwrap();
        build(&second).unwrap();
        assert_eq!(content(&first.output).len(), 5);
        assert_eq!(content(&first.output), content(&second.output));
    }

    #[test]
    fn a_built_image_opens_as_it_was_built() {
        let folder = tempfile::tempdir().unwrap();
        let image = build(&inputs(folder.path())).unwrap();
        assert_eq!(GuestImage::open(&folder.path().join("image")).unwrap(), image);
        assert_eq!(image.manifest.kernel_release, RELEASE);
        assert_eq!(image.manifest.modules[..2], ["vmw_vsock_virtio_transport.ko", "virtio_blk.ko"]);
        assert!(!String::from_utf8_lossy(&fs::read(image.initramfs).unwrap()).contains("debug information"));
    }

    #[test]
    fn an_image_with_a_changed_file_or_manifest_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        build(&inputs(folder.path())).unwrap();
        for name in [VMLINUX, BZIMAGE, INITRAMFS, MANIFEST] {
            let good = fs::read(image.join(name)).unwrap();
            let mut bad = good.clone();
            // In the manifest that is a digit of the last digest.
            let at = bad.len() - 12;
            bad[at] = if bad[at] == b'0' { b'1' } else { b'0' };
            for bad in [&bad[..], &good[..good.len() - 12], b""] {
                fs::write(image.join(name), bad).unwrap();
                let error = GuestImage::open(&image).unwrap_err();
                assert!(matches!(error, Error::Altered { .. } | Error::Manifest { .. }), "{error}");
            }
            fs::write(image.join(name), good).unwrap();
        }
        assert!(GuestImage::open(&image).is_ok());
    }

    #[test]
    fn a_guestd_that_is_no_executable_is_refused_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let options = inputs(folder.path());
        fs::write(&options.guestd, "#!/bin/sh").unwrap();
        let error = build(&options).unwrap_err().to_string();
        assert!(error.contains("guestd can't be the guest's init") && error.contains("next:"), "{error}");
        assert!(!options.output.exists());
    }

    #[test]
    fn the_command_line_lets_unsigned_modules_in_and_guestd_lock_down_later() {
        assert!(!COMMAND_LINE.contains("sig_enforce") && !COMMAND_LINE.contains("lockdown"));
        assert!(!COMMAND_LINE.contains("  "), "{COMMAND_LINE:?}");
    }
}
