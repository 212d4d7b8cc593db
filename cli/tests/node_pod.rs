//! A pod on a node that `cocoon node install` has made, with a real containerd, in namespaces of its own.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use newer_debian::NewerDebian;

#[test]
fn a_pod_outlives_an_upgrade_and_is_not_uninstalled() {
    let folder = tempfile::tempdir().unwrap();
    let containerd = match prepare(folder.path()) {
        Ok(containerd) => containerd,
        Err(reason) => return eprintln!("skipped: {reason}; next: run \"cargo xtask test\" as root"),
    };
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/policies");

    let story = folder.path().join("story");
    fs::write(&story, STORY).unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--pid", "--kill-child", "--mount-proc", "--propagation", "private", "bash"])
        .arg(story)
        .env("CONTAINERD", containerd)
        .env("INITDATA", policies.join("debug.toml"))
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();

    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let log = fs::read_to_string(folder.path().join("containerd.log")).unwrap_or_default();
    assert!(output.status.success() && text.contains("the end"), "{text}\ncontainerd:\n{log}");
}

/// Makes a release of what was built, and gives the folder with containerd's programs.
fn prepare(folder: &Path) -> Result<PathBuf, String> {
    if fs::metadata("/proc/self").map_err(|error| error.to_string())?.uid() != 0 {
        return Err("only root can mount".to_owned());
    }
    Command::new("qemu-system-x86_64").arg("--version").output().map_err(|_| "QEMU is missing")?;
    let cocoon = Path::new(env!("CARGO_BIN_EXE_cocoon"));
    let image = cocoon.ancestors().map(|folder| folder.join("cocoon/guest-image")).find(|path| path.is_dir());
    let image = image.ok_or("the guest image is missing")?;
    for place in ["release/bin", "release/share/guest-image"] {
        fs::create_dir_all(folder.join(place)).unwrap();
    }
    for program in ["cocoon", "containerd-shim-cocoon-v2", "cocoon-snapshotter"] {
        let built = cocoon.with_file_name(program);
        fs::copy(built, folder.join("release/bin").join(program)).map_err(|_| format!("{program} is missing"))?;
    }
    for file in fs::read_dir(image).unwrap().flatten() {
        fs::copy(file.path(), folder.join("release/share/guest-image").join(file.file_name())).unwrap();
    }
    NewerDebian::unpack("sid", &["containerd"]).map(|debian| debian.path().join("usr/bin"))
}

/// What an operator does. Nothing of it is seen outside. systemd can't be had in a namespace: a script does what is asked of
/// it here.
const STORY: &str = r##"
set -eux
set -o pipefail
for place in /opt /run /usr/local/bin /var/lib; do mount -t tmpfs tmpfs $place; done
mkdir layers && mount -t tmpfs tmpfs layers && mkdir layers/etc layers/work
mount -t overlay -o "lowerdir=/etc,upperdir=$PWD/layers/etc,workdir=$PWD/layers/work" overlay /etc
mkdir -p /etc/containerd /run/systemd/system
cp "$CONTAINERD/containerd" "$CONTAINERD/ctr" /usr/local/bin/
cat > /etc/containerd/config.toml <<END
version = 3
root = "$PWD/root"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true # not every machine lets root raise it
disable_apparmor = true
END
cp /etc/containerd/config.toml before.toml
cat > /usr/local/bin/systemctl <<END
#!/bin/sh
cd "$PWD"
echo "\$*" >> systemctl.log
stop() { kill \$(cat pid) && tail --pid=\$(cat pid) -f /dev/null; rm pid; }
start() {
    test ! -e pid || return 0
    setsid \$(sed -n s/^ExecStart=//p /etc/systemd/system/cocoon-snapshotter.service) > snapshotter.log 2>&1 < /dev/null &
    echo \$! > pid
}
case "\$1" in enable) start ;; restart) stop; start ;; disable) stop ;; esac
END
chmod +x /usr/local/bin/systemctl

release/bin/cocoon node install
timeout 60 bash -c 'grep -q -m1 ready <(exec tail -n +1 -F snapshotter.log 2>&1)'
env -i PATH="$PATH" containerd > containerd.log 2>&1 &
trap 'kill %1; wait' EXIT
timeout 60 bash -c 'grep -q -m1 "successfully booted" <(exec tail -n +1 -F containerd.log 2>&1)'
cocoon() { /opt/cocoon/current/bin/cocoon "$@"; }
cocoon node check | tee check
grep -q "^good .*containerd " check
grep -q "^good .*snapshotter " check

class=/opt/cocoon/current/share/classes/qemu-coco-dev/configuration.toml
mkdir -p /etc/containerd/rootfs
timeout 120 ctr run --rootfs --detach --runtime /opt/cocoon/current/bin/containerd-shim-cocoon-v2 \
    --runtime-config-path $class --annotation io.kubernetes.cri.container-type=sandbox \
    --annotation io.katacontainers.config.hypervisor.cc_init_data="$(gzip -c "$INITDATA" | base64 -w0)" \
    /etc/containerd/rootfs pod-1 pause
cocoon ps | grep "^pod-1 "
cocoon metrics pod-1 | grep '^kata_hypervisor_threads '
first=$(readlink /opt/cocoon/current)

# A newer release, which is another one by what is in it.
printf '\n' >> release/share/guest-image/reference-values.json
release/bin/cocoon node install | tee upgrade
grep "^restart cocoon-snapshotter" systemctl.log
grep "^still in use  ${first#versions/}$" upgrade
if grep "restart containerd" upgrade; then exit 1; fi
test "$(readlink /opt/cocoon/current)" != "$first"
cocoon node status | grep "${first#versions/} (rollback leads to it): pod-1$"
if release/bin/cocoon node uninstall 2> refusal; then exit 1; fi
grep "the pod pod-1 runs from ${first#versions/}" refusal
ctr tasks ls | grep "pod-1 .* RUNNING"

shim=$(cocoon ps --json | sed -n 's/.*"pid": \([0-9]*\).*/\1/p')
timeout 60 ctr tasks delete --force pod-1
timeout 60 tail --pid="$shim" -f /dev/null
release/bin/cocoon node uninstall
test ! -e /opt/cocoon
test ! -e pid
tail -n 1 systemctl.log | grep "^daemon-reload$"
cmp before.toml /etc/containerd/config.toml
echo "the end"
"##;
