//! Against images of mkfs.erofs and hash trees of veritysetup, and with this machine's kernel.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use aws_lc_rs::digest::{SHA256, digest};
use tempfile::TempDir;

use crate::{Error, VerityError, VerityRoot, mount};

const OFFSET: &str = "dev.containerd.erofs.dmverity.offset";
const ROOT_DIGEST: &str = "dev.containerd.erofs.dmverity.root_digest";

/// What a tool says; nothing, with the reason printed, where it is not installed.
fn run(tool: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(tool).args(arguments).output() {
        Ok(output) if output.status.success() => Some(String::from_utf8(output.stdout).unwrap()),
        Ok(output) => panic!("{tool} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)),
        Err(e) => {
            eprintln!("skipped: {tool} can't be run: {e}");
            None
        }
    }
}

/// Whether this machine can mount images; prints why not.
fn able() -> bool {
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap();
    let control = File::options().read(true).write(true).open("/dev/loop-control");
    let able = filesystems.contains("\terofs\n") && control.is_ok();
    if !able {
        eprintln!("skipped: the kernel has no erofs, or no loop device can be had: {:?}", control.err());
    }
    able
}

#[test]
fn an_image_is_mounted_and_outlives_its_name() {
    let folder = TempDir::new().unwrap();
    let (tree, image, target) = (folder.path().join("tree"), folder.path().join("image"), folder.path().join("a/b"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "content").unwrap();
    let arguments = ["--quiet", image.to_str().unwrap(), tree.to_str().unwrap()];
    if run("mkfs.erofs", &arguments).is_none() || !able() {
        return;
    }

    let mounted = mount(&image, None, &target).unwrap();

    fs::remove_file(&image).unwrap();
    assert_eq!(mounted.path(), target);
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "content");
    assert!(fs::write(target.join("other"), "x").is_err());
    drop(mounted);
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
}

#[test]
fn what_is_no_image_is_not_given_to_the_kernel() {
    let folder = TempDir::new().unwrap();
    let (image, target) = (folder.path().join("image"), folder.path().join("target"));
    for content in [vec![], vec![0; 1027], vec![0; 4096]] {
        fs::write(&image, content).unwrap();
        assert!(matches!(mount(&image, None, &target), Err(Error::Foreign)));
        assert!(!target.exists());
    }
    fs::remove_file(&image).unwrap();
    assert!(matches!(mount(&image, None, &target), Err(Error::System { action: "open it", .. })));
}

#[test]
fn an_image_without_the_tree_that_was_promised_is_not_mounted() {
    if !able() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (image, target) = (folder.path().join("image"), folder.path().join("target"));
    fs::write(&image, [vec![0; 1024], 0xe0f5_e1e2_u32.to_le_bytes().to_vec(), vec![0; 8192]].concat()).unwrap();
    for offset in [4096, 1 << 40] {
        let root = VerityRoot { hash: [0; 32], offset };
        let error = mount(&image, Some(&root), &target).unwrap_err();
        assert!(matches!(error, Error::Verity(VerityError::Superblock(_))), "{error}");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    }
}

#[test]
fn the_tree_of_veritysetup_is_found_by_its_superblock() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("image");
    let data: Vec<u8> = (0..300 * 4096_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (block, salt) in [(4096, "-"), (1024, "0102030405"), (512, "ff")] {
        fs::write(&path, &data).unwrap();
        let (offset, image) = (data.len().to_string(), path.to_str().unwrap());
        let options = [
            format!("--data-block-size={block}"),
            format!("--hash-block-size={block}"),
            format!("--data-blocks={}", data.len() / block),
            format!("--hash-offset={offset}"),
            format!("--salt={salt}"),
        ];
        let mut arguments = vec!["format", image, image];
        arguments.extend(options.iter().map(String::as_str));
        let Some(text) = run("/usr/sbin/veritysetup", &arguments) else { return };
        let root = text.lines().find_map(|line| line.strip_prefix("Root hash:")).unwrap().trim();
        let annotations =
            [(ROOT_DIGEST, format!("sha256:{root}")), (OFFSET, offset)].map(|(name, value)| (name.to_owned(), value));
        let bound = VerityRoot::from_annotations(&annotations.into_iter().collect()).unwrap().unwrap();

        let table = bound.table(&File::open(&path).unwrap(), Path::new("/dev/loop0")).unwrap();

        // The first node of the tree is the one whose hash is the root.
        let bytes = fs::read(&path).unwrap();
        let node = &bytes[table.hash_start_block as usize * block..][..block];
        assert_eq!(digest(&SHA256, &[&table.salt, node].concat()).as_ref(), bound.hash, "{text}");
        assert_eq!((table.data_blocks as usize, table.data_block_size as usize), (data.len() / block, block));
    }
}
