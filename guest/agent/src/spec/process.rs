//! The process of a container or of a command in it, as its OCI runtime specification describes it.

use std::path::Path;

use serde_json::{Value, json};
use wire_ttrpc::{agent::StringUser, oci};

use super::Error;
use crate::images::ImageProcess;
use crate::user::{self, User};

/// Builds the `process` of a container's `config.json`, as [`build`] does, with a home folder in its environment.
///
/// Without one, the runtime would have the C library look for it inside of the container, for which that loads what the
/// image has in the place of libraries.
///
/// # Errors
/// As [`build`].
pub(crate) fn build_first(
    requested: &oci::Process,
    user: Option<&StringUser>,
    image: &ImageProcess,
    rootfs: &Path,
) -> Result<Value, Error> {
    let mut process = build(requested, user, image, rootfs)?;
    let uid = process["user"]["uid"].as_u64().and_then(|uid| u32::try_from(uid).ok()).unwrap_or(0);
    let env = process["env"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    process["env"] = with_home(env, rootfs, uid).into();
    Ok(process)
}

/// Adds the user's home folder where there is none: that in the `/etc/passwd` of the root file system, or its root.
pub(crate) fn with_home(mut env: Vec<String>, rootfs: &Path, uid: u32) -> Vec<String> {
    let home = env.iter().rev().find_map(|entry| entry.strip_prefix("HOME="));
    if home.is_none_or(str::is_empty) {
        env.retain(|entry| !entry.starts_with("HOME="));
        let can_be = |home: &String| !home.is_empty() && home.len() <= MAX_PATH && !home.contains('\0');
        let home = user::home(rootfs, uid).filter(can_be);
        env.push(format!("HOME={}", home.as_deref().unwrap_or("/")));
    }
    env
}

/// Builds the description of a process, a container's first one or a command.
///
/// Where the request has no arguments, arguments, environment, working directory and user are those of the image,
/// with the request's environment over the image's. Where it has no user, that is the image's, too.
///
/// # Errors
/// [`Error`] for what is malformed, too large, or asks for more than containers of this guest can have.
pub(crate) fn build(
    requested: &oci::Process,
    user: Option<&StringUser>,
    image: &ImageProcess,
    rootfs: &Path,
) -> Result<Value, Error> {
    let from_image = requested.Args.is_empty();
    let args = if from_image { &image.args } else { &requested.Args };
    if args.is_empty() {
        return Err(Error::NoArgs);
    }
    let env = environment(if from_image { &image.env } else { &[] }, &requested.Env)?;
    let cwd = if from_image { &image.cwd } else { &requested.Cwd };
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    if !cwd.starts_with('/') {
        return Err(Error::Process("its working directory is not an absolute path"));
    }
    let size: usize = args.iter().chain(&env).map(|text| text.len() + 1).sum();
    if args.len() + env.len() > MAX_STRINGS || size > MAX_BYTES || cwd.len() > MAX_PATH {
        return Err(Error::Process("its arguments and environment are too large"));
    }
    if args.iter().chain(&env).any(|text| text.contains('\0')) || cwd.contains('\0') {
        return Err(Error::Process("it has a NUL byte in a text"));
    }

    let user = match user.filter(|user| !user.uid.is_empty()) {
        Some(named) => by_name(named, rootfs)?,
        None => match requested.User.as_ref() {
            Some(user) if !from_image => by_number(user),
            _ => User::resolve(rootfs, &image.user)?,
        },
    };
    let mut process = json!({
        "terminal": requested.Terminal,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.additional_gids},
        "args": args,
        "env": env,
        "cwd": cwd,
        "capabilities": capabilities(requested.Capabilities.as_ref())?,
        "noNewPrivileges": requested.NoNewPrivileges,
        "rlimits": rlimits(&requested.Rlimits)?,
    });
    if requested.OOMScoreAdj > 0 {
        process["oomScoreAdj"] = json!(requested.OOMScoreAdj.min(1000));
    }
    Ok(process)
}

/// The variables of `image`, overridden and extended by those of `requested`, with a search path in any case.
fn environment(image: &[String], requested: &[String]) -> Result<Vec<String>, Error> {
    fn name(entry: &str) -> Option<&str> {
        entry.split_once('=').map(|(name, _)| name).filter(|name| !name.is_empty())
    }
    if requested.iter().any(|entry| name(entry).is_none()) {
        return Err(Error::Process("its environment has an entry that is not NAME=value"));
    }
    let overridden = |entry: &&String| !requested.iter().any(|other| name(other) == name(entry));
    let mut env: Vec<String> = image.iter().filter(|entry| name(entry).is_some()).filter(overridden).cloned().collect();
    env.extend(requested.iter().cloned());
    if !env.iter().any(|entry| name(entry) == Some("PATH")) {
        env.push(DEFAULT_PATH.to_owned());
    }
    Ok(env)
}

fn by_name(user: &StringUser, rootfs: &Path) -> Result<User, Error> {
    let text = if user.gid.is_empty() { user.uid.clone() } else { format!("{}:{}", user.uid, user.gid) };
    let mut found = User::resolve(rootfs, &text)?;
    for group in user.additionalGids.iter().take(MAX_GROUPS) {
        found.additional_gids.push(group.parse().map_err(|_| Error::Process("an additional group is not a number"))?);
    }
    Ok(found)
}

fn by_number(user: &oci::User) -> User {
    let additional_gids = user.AdditionalGids.iter().copied().take(MAX_GROUPS).collect();
    User { uid: user.UID, gid: user.GID, additional_gids }
}

/// The capability sets, without those that reach around the container.
fn capabilities(requested: Option<&oci::LinuxCapabilities>) -> Result<Value, Error> {
    let Some(requested) = requested else {
        return Ok(
            json!({"bounding": DEFAULT_CAPABILITIES, "effective": DEFAULT_CAPABILITIES, "permitted": DEFAULT_CAPABILITIES,
            "inheritable": [], "ambient": []}),
        );
    };
    let set = |names: &[String]| -> Result<Vec<String>, Error> {
        let named = |name: &String| {
            name.starts_with("CAP_") && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        };
        if names.len() > MAX_CAPABILITIES || !names.iter().all(named) {
            return Err(Error::Process("it has a capability that does not exist"));
        }
        Ok(names.iter().filter(|name| name.as_str() != NEVER).cloned().collect())
    };
    Ok(json!({
        "bounding": set(&requested.Bounding)?,
        "effective": set(&requested.Effective)?,
        "permitted": set(&requested.Permitted)?,
        "inheritable": set(&requested.Inheritable)?,
        "ambient": set(&requested.Ambient)?,
    }))
}

fn rlimits(requested: &[oci::POSIXRlimit]) -> Result<Value, Error> {
    if requested.len() > MAX_RLIMITS
        || requested.iter().any(|limit| !limit.Type.starts_with("RLIMIT_") || limit.Soft > limit.Hard)
    {
        return Err(Error::Process("it has a resource limit that does not exist"));
    }
    Ok(requested.iter().map(|limit| json!({"type": limit.Type, "hard": limit.Hard, "soft": limit.Soft})).collect())
}

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_CAPABILITIES: [&str; 13] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
/// There is no device control group here: with it a container could open any device of the guest, the TEE's included.
const NEVER: &str = "CAP_MKNOD";
const MAX_STRINGS: usize = 8192;
const MAX_BYTES: usize = 1 << 20;
const MAX_PATH: usize = 4096;
const MAX_GROUPS: usize = 256;
const MAX_CAPABILITIES: usize = 64;
const MAX_RLIMITS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::MessageField;

    fn image() -> ImageProcess {
        ImageProcess {
            args: vec!["/app".into(), "serve".into()],
            env: vec!["PATH=/app/bin".into(), "MODE=image".into()],
            cwd: "/srv".into(),
            user: "12:34".into(),
        }
    }

    #[test]
    fn a_request_without_arguments_runs_what_the_image_says() {
        let requested = oci::Process {
            Env: vec!["MODE=request".into(), "EXTRA=1".into()],
            Cwd: "/ignored".into(),
            User: MessageField::some(oci::User { UID: 9, ..Default::default() }),
            ..Default::default()
        };
        let process = build(&requested, None, &image(), Path::new("/none")).unwrap();
        assert_eq!(process["args"], json!(["/app", "serve"]));
        assert_eq!(process["env"], json!(["PATH=/app/bin", "MODE=request", "EXTRA=1"]));
        assert_eq!(
            (&process["cwd"], &process["user"]["uid"], &process["user"]["gid"]),
            (&json!("/srv"), &json!(12), &json!(34))
        );
    }

    #[test]
    fn a_request_with_arguments_runs_as_it_says() {
        let requested = oci::Process {
            Args: vec!["sh".into()],
            User: MessageField::some(oci::User { UID: 9, GID: 8, AdditionalGids: vec![7], ..Default::default() }),
            OOMScoreAdj: -998,
            ..Default::default()
        };
        let process = build(&requested, None, &image(), Path::new("/none")).unwrap();
        assert_eq!(process["args"], json!(["sh"]));
        assert_eq!(process["env"], json!([DEFAULT_PATH]));
        assert_eq!(process["user"], json!({"uid": 9, "gid": 8, "additionalGids": [7]}));
        assert_eq!(process["cwd"], "/");
        let nobody = oci::Process { Args: vec!["sh".into()], ..Default::default() };
        let process_of_nobody = build(&nobody, None, &image(), Path::new("/none")).unwrap();
        assert_eq!(process_of_nobody["user"]["uid"], 12, "no user is the image's, not root");
        assert!(process.get("oomScoreAdj").is_none(), "no container is spared at the guest's expense");
        assert_eq!(process["capabilities"]["bounding"], json!(DEFAULT_CAPABILITIES));
    }

    #[test]
    fn a_first_process_has_a_home_in_any_case() {
        let image = tempfile::tempdir().unwrap();
        std::fs::create_dir(image.path().join("etc")).unwrap();
        let long = "x".repeat(5000);
        let passwd =
            format!("web:x:9:9::/home/web:/bin/sh\nnone:x:10:10:::\nlong:x:11:11::/{long}:\nnul:x:12:12::/a\0b:\n");
        std::fs::write(image.path().join("etc/passwd"), passwd).unwrap();
        for (uid, env, home) in [
            (9, &[][..], "/home/web"),
            (9, &["HOME=/given"], "/given"),
            (9, &["HOME=/given", "HOME="], "/home/web"),
            (9, &["HOME=", "HOME=/given"], "/given"),
            (9, &["HOME=", "HOMES=/x"], "/home/web"),
            (8, &["HOME="], "/"),
            (10, &[], "/"),
            (11, &[], "/"),
            (12, &[], "/"),
        ] {
            let requested = oci::Process {
                Args: vec!["sh".into()],
                Env: env.iter().map(ToString::to_string).collect(),
                User: MessageField::some(oci::User { UID: uid, ..Default::default() }),
                ..Default::default()
            };
            let process = build_first(&requested, None, &ImageProcess::default(), image.path()).unwrap();
            let entries = process["env"].as_array().unwrap().iter().map(|entry| entry.as_str().unwrap());
            // As the runtime reads it: the last one of a name counts.
            assert_eq!(
                entries.filter_map(|entry| entry.strip_prefix("HOME=")).next_back(),
                Some(home),
                "{uid} {env:?}"
            );
        }
    }

    #[test]
    fn devices_can_never_be_made() {
        let all = vec!["CAP_CHOWN".to_owned(), "CAP_MKNOD".to_owned()];
        let requested = oci::Process {
            Args: vec!["sh".into()],
            Capabilities: MessageField::some(oci::LinuxCapabilities {
                Bounding: all.clone(),
                Effective: all.clone(),
                Permitted: all,
                ..Default::default()
            }),
            ..Default::default()
        };
        let process = build(&requested, None, &image(), Path::new("/none")).unwrap();
        assert!(!process["capabilities"].to_string().contains("MKNOD"));
        assert!(!DEFAULT_CAPABILITIES.contains(&NEVER));
    }

    #[test]
    fn malformed_processes_are_refused() {
        let sh = || oci::Process { Args: vec!["sh".into()], ..Default::default() };
        for requested in [
            oci::Process { Env: vec!["NOVALUE".into()], ..sh() },
            oci::Process { Env: vec!["=x".into()], ..sh() },
            oci::Process { Cwd: "relative".into(), ..sh() },
            oci::Process { Args: vec!["a\0b".into()], ..sh() },
            oci::Process { Args: vec!["a".repeat(2 << 20)], ..sh() },
            oci::Process { Args: vec!["a".into(); 9000], ..sh() },
            oci::Process { Rlimits: vec![oci::POSIXRlimit { Type: "X".into(), ..Default::default() }], ..sh() },
            oci::Process {
                Capabilities: MessageField::some(oci::LinuxCapabilities {
                    Bounding: vec!["ALL".into()],
                    ..Default::default()
                }),
                ..sh()
            },
        ] {
            assert!(build(&requested, None, &image(), Path::new("/none")).is_err(), "{:?}", requested.Env);
        }
        assert!(matches!(
            build(&oci::Process::default(), None, &ImageProcess::default(), Path::new("/")),
            Err(Error::NoArgs)
        ));
    }
}
