//! Tests of image encryption, on layouts made here and on real ones by umoci and skopeo.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use oci_spec::image::ImageManifest;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use wire::layer::{Decryptor, PrivateOptions, PublicOptions};

use super::super::lab::Lab;
use super::*;

const KEY_ID: &str = "kbs:///default/key/app";

impl Lab {
    pub(in crate::image) fn options(&self) -> EncryptOptions {
        EncryptOptions {
            source: format!("oci:{}:v1", self.path("plain").display()),
            destination: self.path("encrypted"),
            key_file: self.path("key"),
            generate_key: true,
            key_id: KEY_ID.to_owned(),
            layers: Vec::new(),
            recipients: Vec::new(),
        }
    }

    fn encrypted_blob(&self, digest: &str) -> Vec<u8> {
        fs::read(self.path("encrypted/blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())).unwrap()
    }

    fn manifest(&self, report: &EncryptReport) -> ImageManifest {
        serde_json::from_slice(&self.encrypted_blob(&report.digest)).unwrap()
    }

    fn decrypt(&self, layer: &Descriptor) -> Vec<u8> {
        let annotations = layer.annotations().as_ref().unwrap();
        let packet = STANDARD.decode(&annotations[&format!("{PROVIDER_ANNOTATION_PREFIX}{PROVIDER}")]).unwrap();
        let packet = AnnotationPacket::parse(&packet).unwrap();
        assert_eq!(packet.kid(), KEY_ID);
        let private = packet.unwrap(&fs::read(self.path("key")).unwrap()).unwrap();
        let private = PrivateOptions::parse(&private).unwrap();
        let public = PublicOptions::from_annotation(&annotations[PUBLIC_OPTIONS_ANNOTATION]).unwrap();
        let mut bytes = self.encrypted_blob(layer.digest().as_ref());
        let mut decryptor = Decryptor::new(&private, &public).unwrap();
        decryptor.update(&mut bytes).unwrap();
        decryptor.finish().unwrap();
        assert_eq!(private.digest(), format!("sha256:{}", hex::encode(Sha256::digest(&bytes))));
        bytes
    }
}

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

#[test]
fn every_layer_comes_back_with_the_owners_key_only() {
    let large = vec![7; 300_000];
    let lab = Lab::new(&[(TAR, b"bottom"), (GZIP, &large)]);

    let report = encrypt(lab.options()).unwrap();

    let manifest = lab.manifest(&report);
    let types: Vec<_> = manifest.layers().iter().map(|layer| layer.media_type().to_string()).collect();
    assert_eq!(types, [format!("{TAR}+encrypted"), format!("{GZIP}+encrypted")]);
    assert_eq!(lab.decrypt(&manifest.layers()[0]), b"bottom");
    assert_eq!(lab.decrypt(&manifest.layers()[1]), large);
    assert_eq!(lab.encrypted_blob(manifest.config().digest().as_ref()), b"{}");
    assert_eq!(fs::metadata(lab.path("key")).unwrap().permissions().mode() & 0o777, 0o600);
    let leftovers = fs::read_dir(lab.0.path()).unwrap().count();
    assert_eq!(leftovers, 3, "plain, encrypted and key are all there is");
    assert!(report.to_string().contains(&report.digest));
}

#[test]
fn only_chosen_layers_are_encrypted() {
    let lab = Lab::new(&[(TAR, b"public"), (TAR, b"secret")]);

    let report = encrypt(EncryptOptions { layers: vec![1], ..lab.options() }).unwrap();

    let manifest = lab.manifest(&report);
    assert_eq!(lab.encrypted_blob(manifest.layers()[0].digest().as_ref()), b"public");
    assert_eq!(manifest.layers()[0].media_type().as_ref(), TAR);
    assert_eq!(lab.decrypt(&manifest.layers()[1]), b"secret");
}

#[test]
fn an_index_keeps_its_images_and_loses_attestations() {
    let lab = Lab::new(&[]);
    let layer = lab.blob(TAR, b"layer");
    let config = lab.blob("application/vnd.oci.image.config.v1+json", b"{}");
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] }).to_string();
    let mut image = lab.blob("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
    image["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    let mut attestation = lab.blob("application/vnd.oci.image.manifest.v1+json", b"{}");
    attestation["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let index = json!({ "schemaVersion": 2, "manifests": [image, attestation] }).to_string();
    lab.index(&[lab.blob("application/vnd.oci.image.index.v1+json", index.as_bytes())]);

    let report = encrypt(EncryptOptions { source: lab.path("plain").display().to_string(), ..lab.options() }).unwrap();

    let index: ImageIndex = serde_json::from_slice(&lab.encrypted_blob(&report.digest)).unwrap();
    let [only] = &index.manifests()[..] else { panic!("{index:?}") };
    assert!(only.platform().is_some());
    let manifest: ImageManifest = serde_json::from_slice(&lab.encrypted_blob(only.digest().as_ref())).unwrap();
    assert_eq!(lab.decrypt(&manifest.layers()[0]), b"layer");
    assert_eq!((report.layers.len(), report.left_out.len()), (1, 1));
}

#[test]
fn a_refusal_says_why_and_leaves_nothing_behind() {
    let lab = || Lab::new(&[(TAR, b"layer")]);
    type Change = fn(&Lab, &mut EncryptOptions);
    let cases: [(&str, Change); 13] = [
        ("kbs:///repository/type/tag", |_, options| options.key_id = "app".to_owned()),
        ("exists already", |lab, options| {
            options.destination = lab.path("there");
            fs::create_dir(lab.path("there")).unwrap();
        }),
        ("0 images have the tag \"v2\"", |lab, options| {
            options.source = format!("oci:{}:v2", lab.path("plain").display())
        }),
        ("it has: v1", |lab, options| options.source = format!("oci:{}:v2", lab.path("plain").display())),
        ("oci-layout", |lab, _| fs::remove_file(lab.path("plain/oci-layout")).unwrap()),
        ("index.json", |lab, _| fs::write(lab.path("plain/index.json"), "{").unwrap()),
        ("not that of its digest", |lab, _| {
            let path = lab.path("plain/blobs/sha256").join(hex::encode(Sha256::digest(b"layer")));
            fs::write(path, b"lay3r").unwrap();
        }),
        ("No such file", |lab, _| {
            fs::remove_file(lab.path("plain/blobs/sha256").join(hex::encode(Sha256::digest(b"layer")))).unwrap();
        }),
        ("no layer 1", |_, options| options.layers = vec![1]),
        ("No such file", |_, options| options.generate_key = false),
        ("no PUBLIC KEY block", |lab, options| {
            fs::write(lab.path("public"), "text").unwrap();
            options.recipients = vec![lab.path("public")];
        }),
        ("neither RSA nor on P-256", |lab, options| {
            fs::write(lab.path("public"), "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----").unwrap();
            options.recipients = vec![lab.path("public")];
        }),
        ("exactly 32 bytes", |lab, options| {
            fs::write(lab.path("other"), [1; 33]).unwrap();
            (options.key_file, options.generate_key) = (lab.path("other"), false);
        }),
    ];
    for (reason, change) in cases {
        let lab = lab();
        let mut options = lab.options();
        change(&lab, &mut options);

        let error = encrypt(options).unwrap_err().to_string();

        assert!(error.contains(reason), "expected {reason:?} in {error:?}");
        assert!(!lab.path("encrypted").exists() && !lab.path("key").exists(), "{reason}");
        let hidden =
            fs::read_dir(lab.0.path()).unwrap().any(|e| e.unwrap().file_name().to_string_lossy().starts_with('.'));
        assert!(!hidden, "{reason}: the staging folder is left");
    }
}

#[test]
fn every_type_of_filesystem_layer_keeps_its_type_and_comes_back() {
    let types = [
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.erofs.layer.v1",
    ];
    let lab = Lab::new(&types.map(|media_type| (media_type, media_type.as_bytes())));

    let manifest = lab.manifest(&encrypt(lab.options()).unwrap());

    assert_eq!(manifest.layers().len(), types.len());
    for (layer, media_type) in manifest.layers().iter().zip(types) {
        assert_eq!(layer.media_type().as_ref(), format!("{media_type}+encrypted"));
        assert_eq!(lab.decrypt(layer), media_type.as_bytes());
    }
    for other in ["application/vnd.in-toto+json", "application/vnd.oci.image.layer.v1.tar+lz4", "text"] {
        let lab = Lab::new(&[(other, b"layer")]);
        assert!(matches!(encrypt(lab.options()), Err(Error::NotALayer { index: 0, .. })), "{other}");
    }
}

#[test]
fn an_encrypted_image_is_not_encrypted_again() {
    let lab = Lab::new(&[(TAR, b"layer")]);
    encrypt(lab.options()).unwrap();
    let again = EncryptOptions {
        source: lab.path("encrypted").display().to_string(),
        destination: lab.path("twice"),
        generate_key: false,
        ..lab.options()
    };
    assert!(matches!(encrypt(again), Err(Error::AlreadyEncrypted(0))));
}

#[test]
fn other_tools_accept_the_result() {
    let lab = Lab(TempDir::new().unwrap());
    let layout = lab.path("plain").display().to_string();
    let image = format!("{layout}:v1");
    fs::create_dir_all(lab.path("rootfs/etc")).unwrap();
    fs::write(lab.path("rootfs/etc/motd"), "hello").unwrap();
    let rootfs = lab.path("rootfs").display().to_string();
    for arguments in [
        vec!["umoci", "init", "--layout", &layout],
        vec!["umoci", "new", "--image", &image],
        vec!["umoci", "insert", "--rootless", "--image", &image, &rootfs, "/"],
    ] {
        if !run(&arguments) {
            return;
        }
    }

    let report = encrypt(lab.options()).unwrap();

    let encrypted = format!("oci:{}", lab.path("encrypted").display());
    let Some(inspected) = output(&["skopeo", "inspect", "--raw", &encrypted]) else { return };
    assert_eq!(format!("sha256:{}", hex::encode(Sha256::digest(&inspected))), report.digest);
    let copy = format!("oci:{}:v1", lab.path("copy").display());
    assert!(run(&["skopeo", "--insecure-policy", "copy", &encrypted, &copy]));
}

#[test]
fn the_holder_of_a_recipients_key_decrypts_with_skopeo() {
    let lab = Lab(TempDir::new().unwrap());
    let layout = lab.path("plain").display().to_string();
    let image = format!("{layout}:v1");
    fs::create_dir_all(lab.path("rootfs")).unwrap();
    fs::write(lab.path("rootfs/motd"), "hello").unwrap();
    let (rsa, ec) = (lab.path("rsa").display().to_string(), lab.path("ec").display().to_string());
    for arguments in [
        vec!["umoci", "init", "--layout", &layout],
        vec!["umoci", "new", "--image", &image],
        vec!["umoci", "insert", "--rootless", "--image", &image, &lab.path("rootfs").display().to_string(), "/"],
        vec!["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", &rsa],
        vec!["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &ec],
        vec!["openssl", "pkey", "-in", &rsa, "-pubout", "-out", &format!("{rsa}.pub")],
        vec!["openssl", "pkey", "-in", &ec, "-pubout", "-out", &format!("{ec}.pub")],
    ] {
        if !run(&arguments) {
            return;
        }
    }

    let recipients = vec![lab.path("rsa.pub"), lab.path("ec.pub")];
    encrypt(EncryptOptions { recipients, ..lab.options() }).unwrap();

    let encrypted = format!("oci:{}:v1", lab.path("encrypted").display());
    for key in [&rsa, &ec] {
        let copy = format!("oci:{key}-decrypted:v1");
        if !run(&["skopeo", "--insecure-policy", "copy", "--quiet", "--decryption-key", key, &encrypted, &copy]) {
            return;
        }
        let plain = super::super::inspect(&layout).unwrap();
        let decrypted = super::super::inspect(&copy).unwrap();
        let digest = |report: &super::super::Inspection| report.images[0].manifests[0].layers[0].digest.clone();
        assert_eq!(digest(&plain), digest(&decrypted), "{key}");
    }
}

/// Runs a tool; false, with the reason printed, if this machine does not have it.
fn run(arguments: &[&str]) -> bool {
    output(arguments).is_some()
}

fn output(arguments: &[&str]) -> Option<Vec<u8>> {
    match Command::new(arguments[0]).args(&arguments[1..]).output() {
        Ok(output) => {
            assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            Some(output.stdout)
        }
        Err(e) => {
            eprintln!("skipped: {} can't be run: {e}", arguments[0]);
            None
        }
    }
}
