//! What of the host's files a guest gets, and gets again.

use std::os::unix::fs::symlink;

use hyper::Method;
use hyper::body::Bytes;

use super::*;
use crate::direct_volumes;

#[tokio::test]
async fn a_config_map_is_copied_and_follows_its_changes() {
    let lab = Lab::with_pod().await;
    let volume = lab.path("kubernetes.io~configmap/settings");
    let written = |version: &str, text: &str| {
        fs::create_dir_all(volume.join(version)).unwrap();
        fs::write(volume.join(version).join("key"), text).unwrap();
        // As kubelet does it: a draft of the link, then a swap.
        symlink(version, volume.join("..data_tmp")).unwrap();
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    };
    fs::create_dir_all(&volume).unwrap();
    written("..1", "old");
    symlink("..data/key", volume.join("key")).unwrap();

    lab.create(lab.container("web", json!([bind(&volume, "/etc/settings")]))).await.unwrap();

    let target = lab.agent.created.lock().unwrap()[1].OCI.Mounts[0].source.clone();
    assert!(target.starts_with("/run/kata-containers/shared/containers/web-") && target.ends_with("-settings"));
    let mut files = lab.agent.files.subscribe();
    let at = |name: &str| format!("{target}/{name}");
    {
        let files = files.borrow_and_update();
        assert_eq!(files[&at("..1/key")], b"old");
        assert_eq!((files[&at("..data")].as_slice(), files[&at("key")].as_slice()), (&b"..1"[..], &b"..data/key"[..]));
    }

    written("..2", "new");
    // As soon as it is out of use, perhaps while it is still being copied.
    fs::remove_dir_all(volume.join("..1")).unwrap();

    let swapped = |files: &std::collections::BTreeMap<String, Vec<u8>>| files[&at("..data")] == b"..2";
    let files = soon(files.wait_for(swapped)).await.unwrap();
    assert_eq!(files[&at("..2/key")], b"new", "the link leads to what isn't there");
}

#[tokio::test]
async fn a_large_file_goes_in_pieces_that_fit_a_frame() {
    let lab = Lab::with_pod().await;
    let file = lab.path("large");
    let content: Vec<u8> = (0..(5 << 20) + 7_u32).map(|at| (at % 251) as u8).collect();
    fs::write(&file, &content).unwrap();
    fs::write(lab.path("empty"), "").unwrap();

    let mounts = json!([bind(&file, "/large"), bind(&lab.path("empty"), "/empty")]);
    lab.create(lab.container("web", mounts)).await.unwrap();

    let mounts = lab.agent.created.lock().unwrap()[1].OCI.Mounts.clone();
    let files = lab.agent.files.borrow();
    assert!(files[&mounts[0].source] == content);
    assert!(files[&mounts[1].source].is_empty());
    let pieces = lab.agent.pieces.lock().unwrap();
    let largest = pieces.iter().map(|(_, _, length)| *length).max().unwrap();
    assert!(largest <= 1 << 20 && pieces.len() == 7, "{} pieces of up to {largest} bytes", pieces.len());
}

#[tokio::test]
async fn a_guest_that_takes_no_files_gets_no_container() {
    let lab = Lab::with_pod().await;
    fs::write(lab.path("hosts"), "x").unwrap();
    lab.agent.deny("CopyFile");
    let error = lab.create(lab.container("web", json!([bind(&lab.path("hosts"), "/etc/hosts")]))).await.unwrap_err();
    assert_eq!(code(error).0, ttrpc::Code::PERMISSION_DENIED);
    assert_eq!(code(lab.state("web").await.unwrap_err()).0, ttrpc::Code::NOT_FOUND);
}

#[tokio::test]
async fn last_words_are_there_when_the_end_is_told() {
    let mut lab = Lab::with_pod().await;
    let log = lab.path("log");
    fs::write(&log, "").unwrap();
    lab.create(lab.container("web", json!([bind(&log, "/dev/termination-log")]))).await.unwrap();
    lab.start("web", "").await.unwrap();
    lab.agent.exit("web", "", 0);
    while lab.containerd.next().await != "/tasks/exit web 0" {}
    assert_eq!(fs::read_to_string(&log).unwrap(), "last words of web");
}

#[tokio::test]
async fn storage_drivers_are_told_what_is_wrong_with_their_questions() {
    let lab = Lab::with_pod().await;
    let ask = async |method: Method, path: &str, query: &str| {
        let (path, query) = (path.to_owned(), query.to_owned());
        direct_volumes::answer(&lab.shim, &::management::Request { method, path, query, body: Bytes::new() }).await
    };
    for (method, path, query, status, said) in [
        (Method::GET, "/direct-volume/stats", "", 400, "path is missing"),
        (Method::POST, "/direct-volume/stats", "path=%%", 400, "path is missing"),
        (Method::POST, "/direct-volume/stats", "path=L2RhdGE%3D", 404, "a disk of this pod for the volume /data"),
        (Method::POST, "/direct-volume/resize", "", 501, "can't grow; next:"),
        (Method::DELETE, "/direct-volume/stats", "", 405, "only GET and POST"),
    ] {
        let (found, text) = ask(method, path, query).await.unwrap();
        assert!(found == status && text.contains(said), "{path}?{query}: {found} {text}");
    }
    assert!(ask(Method::GET, "/direct-volume", "").await.is_none());
}
