//! The release of a node: its programs, which run on any distribution, and the guest image, in one folder.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, build, output, packages, step};

/// Makes the folder that `cocoon node install --from` takes, and returns it.
pub fn make() -> Result<PathBuf, Error> {
    packages::install()?;
    build::node_programs()?;
    let image = build::guest_image_by(&build::node_program("cocoon"))?;
    step("putting the release together");
    let release = build::state().join("release");
    let draft = build::state().join("release.new");
    for folder in [&draft, &release] {
        if folder.exists() {
            fs::remove_dir_all(folder).map_err(failed(folder))?;
        }
    }
    for folder in ["bin", "share/guest-image"] {
        fs::create_dir_all(draft.join(folder)).map_err(failed(&draft))?;
    }
    let mut names = vec!["version".to_owned()];
    fs::write(draft.join("version"), concat!(env!("CARGO_PKG_VERSION"), "\n")).map_err(failed(&draft))?;
    for program in build::NODE_PROGRAMS {
        names.push(format!("bin/{program}"));
        copy(&build::node_program(program), &draft.join("bin").join(program))?;
    }
    for file in IMAGE {
        names.push(format!("share/guest-image/{file}"));
        copy(&image.join(file), &draft.join("share/guest-image").join(file))?;
    }
    let sums = output(Command::new("sha256sum").args(names).current_dir(&draft))?;
    fs::write(draft.join(SUMS), sums).map_err(failed(&draft))?;
    fs::rename(&draft, &release).map_err(failed(&release))?;
    Ok(release)
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let copied = fs::copy(from, to).and_then(|_| File::open(to)?.sync_all());
    copied.map_err(failed(from))
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |error| Error(format!("release: {}: {error}", path.display()))
}

/// What is in a guest image's folder.
const IMAGE: [&str; 5] = ["vmlinux", "bzImage", "initramfs", "manifest.json", "reference-values.json"];
/// The list that `sha256sum --check` reads, and `cocoon node install` too.
const SUMS: &str = "SHA256SUMS";
