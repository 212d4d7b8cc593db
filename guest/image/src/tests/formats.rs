//! Archives in every format that GNU tar writes: what comes out is what went in.

use std::process::Command;

use super::*;
use crate::unpack::{self, Limits};

fn sh(folder: &Path, script: &str) -> String {
    let output = Command::new("sh").args(["-euc", script]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Makes a tree, and writes it with each of these options.
fn round_trip(make: &str, formats: &[&str]) {
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("tree")).unwrap();
    sh(&folder.path().join("tree"), make);
    sh(folder.path(), "find tree -depth -exec touch --no-dereference --date @1600000000 {} +");
    for (index, options) in formats.iter().enumerate() {
        let unpacked = folder.path().join(index.to_string());
        std::fs::create_dir(&unpacked).unwrap();
        let archive = format!("archive-{index}");
        sh(folder.path(), &format!("tar --create --file {archive} --directory tree {options} ."));

        let archive = std::fs::read(folder.path().join(archive)).unwrap();
        unpack::unpack(&archive[..], &unpacked, Limits::default()).unwrap();

        let expected = listing(&folder.path().join("tree"));
        assert!(expected.lines().count() > 3, "{expected}");
        assert_eq!(listing(&unpacked), expected, "{options}");
        sh(folder.path(), &format!("diff --recursive --no-dereference --exclude 'special*' tree {index}"));
    }
}

/// Name, type, mode, owner, time, number of links, link target; the size of what is no directory; and device numbers.
fn listing(folder: &Path) -> String {
    sh(
        folder,
        "{ find . -type d -printf '%P %y %m %U %G %T@\\n' -o -printf '%P %y %m %U %G %T@ %n %s %l\\n'
           find . -type c -exec stat --format '%n %t %T' {} + ; find . -type b -exec stat --format '%n %t %T' {} + ; } | sort",
    )
}

const FILES: &str = "
    mkdir -m 700 private; mkdir -m 1777 shared; mkdir -p private/deep/er
    echo hello > private/motd; chmod 640 private/motd; : > empty
    printf 'exactly 512 bytes%495s' ' ' > block; head -c 100000 /dev/zero | tr '\\0' x > shared/large
    printf '#!/bin/sh' > tool; chmod 6755 tool
    ln private/motd twin; ln private/motd shared/third
    ln -s motd private/soft; ln -s /absolute/target outside; ln -s ../.. up; ln -s nowhere dangling";

#[test]
fn files_and_links_in_every_format() {
    round_trip(FILES, &["--format=v7", "--format=oldgnu", "--format=gnu", "--format=ustar", "--format=posix"]);
}

#[test]
fn archives_that_name_the_same_things_otherwise() {
    let pax = "--format=posix --pax-option";
    round_trip(
        FILES,
        &[
            "--sort=name --format=posix",
            "--numeric-owner --format=gnu",
            "--blocking-factor=1 --format=ustar",
            "--blocking-factor=200 --format=gnu",
            &format!("{pax}=exthdr.name=%d/PaxHeaders/%f,globexthdr.name=global"),
            &format!("{pax}=comment=for-all,realtime=1"),
            &format!("{pax}=delete=atime,delete=ctime"),
        ],
    );
}

#[test]
fn long_names_and_long_targets() {
    // With "./" before them 98 bytes fill the header's field, and 99 are too many, which ustar has no way to write.
    let short = "for length in 96 97 98; do name=$(printf \"%${length}s\" | tr ' ' n)
                 echo $length > $name; ln $name twin-$length; done";
    round_trip(short, &["--format=oldgnu", "--format=gnu", "--format=ustar", "--format=posix"]);
    round_trip(&short.replace("98;", "98 99 100;"), &["--format=oldgnu", "--format=gnu", "--format=posix"]);
    let prefixed = "name=$(printf '%90s' | tr ' ' n); mkdir $name; echo deep > $name/$name; mkdir $name/dir";
    round_trip(prefixed, &["--format=ustar"]);
    let long = "name=$(printf '%200s' | tr ' ' n); mkdir -p $name/$name/$name; echo deep > $name/$name/$name/file
                ln $name/$name/$name/file twin; ln -s $name/$name/$name/file soft; ln -s $name/$name $name/soft";
    round_trip(long, &["--format=oldgnu", "--format=gnu", "--format=posix"]);
}

#[test]
fn files_with_holes() {
    let holes = "for size in 1 7 90; do : > holes-$size; for part in $(seq $size)
                 do printf data | dd of=holes-$size bs=64K seek=$part conv=notrunc status=none; done; done
                 truncate -s 3M nothing-but-hole; echo beside > plain";
    round_trip(
        holes,
        &[
            "--sparse --format=oldgnu",
            "--sparse --format=gnu",
            "--sparse --format=posix --sparse-version=0.0",
            "--sparse --format=posix --sparse-version=0.1",
            "--sparse --format=posix --sparse-version=1.0",
        ],
    );
}

#[test]
fn devices_and_pipes() {
    if !privileged() {
        return;
    }
    let special = "mkfifo -m 622 special-pipe; mknod -m 600 special-null c 1 3; mknod -m 660 special-disk b 8 17
                   mknod -m 640 special-large c 300 70000; chown 1234:70000 special-null; : > plain";
    round_trip(special, &["--format=gnu", "--format=posix"]);
}

#[test]
fn owners_and_sizes_beyond_the_octal_digits() {
    if !privileged() {
        return;
    }
    let owned = "for id in 0 2097151 2097152 4294967294; do : > $id; chown $id:$id $id; done";
    round_trip(owned, &["--format=oldgnu", "--format=gnu", "--format=posix"]);
}

#[test]
fn attributes_of_files_and_directories() {
    if !privileged() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (tree, unpacked) = (folder.path().join("tree"), folder.path().join("unpacked"));
    sh(folder.path(), "mkdir -p tree/dir unpacked; : > tree/tool; ln -s tool tree/link");
    // cap_net_raw=ep
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let attributes = [
        ("tool", "security.capability", &capability[..]),
        ("tool", "user.note", b"two\nlines=1"),
        ("dir", "user.note", b"kept"),
        ("dir", "trusted.note", b"kept"),
        ("link", "trusted.note", b"of the link itself"),
    ];
    for (name, attribute, value) in attributes {
        rustix::fs::lsetxattr(tree.join(name), attribute, value, rustix::fs::XattrFlags::empty()).unwrap();
    }
    sh(folder.path(), "tar --create --file archive --directory tree --format=posix --xattrs --xattrs-include='*' .");

    let archive = std::fs::read(folder.path().join("archive")).unwrap();
    unpack::unpack(&archive[..], &unpacked, Limits::default()).unwrap();

    for (name, attribute, value) in attributes {
        let mut buffer = [0; 64];
        let length = rustix::fs::lgetxattr(unpacked.join(name), attribute, &mut buffer[..]).unwrap();
        assert_eq!(&buffer[..length], value, "{attribute} of {name}");
    }
}

#[test]
fn absolute_names_stay_below_the_root_and_dotdot_is_refused() {
    let folder = TempDir::new().unwrap();
    sh(folder.path(), "mkdir -p tree/sub unpacked other; echo hello > tree/file; ln tree/file tree/twin");
    let read_archive = || std::fs::read(folder.path().join("archive")).unwrap();

    // Its hard link's target is absolute as well.
    sh(folder.path(), "tar --create --file archive --absolute-names \"$PWD/tree\"");
    unpack::unpack(&read_archive()[..], &folder.path().join("unpacked"), Limits::default()).unwrap();
    let below = folder.path().join("unpacked").join(folder.path().strip_prefix("/").unwrap()).join("tree");
    assert_eq!((read(&below.join("file")), read(&below.join("twin"))), ("hello\n".to_owned(), "hello\n".to_owned()));

    sh(folder.path(), "cd tree/sub; tar --create --file ../../archive --absolute-names ../file");
    let refused = unpack::unpack(&read_archive()[..], &folder.path().join("other"), Limits::default()).unwrap_err();
    assert!(refused.to_string().contains("leads out of the layer"), "{refused}");
    assert_eq!(std::fs::read_dir(folder.path().join("other")).unwrap().count(), 0);
}
