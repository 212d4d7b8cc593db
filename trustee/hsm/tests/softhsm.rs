//! Keys and secrets in a real PKCS#11 module, SoftHSM.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;

use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OaepPublicEncryptingKey, PublicEncryptingKey};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;
use hsm::{Error, Hsm, HsmSettings, MAX_OBJECT, MAX_SESSIONS, MAX_WRAPPED, Pin, RsaMechanism, Token};
use token::{KEY, LABEL, MODULE, PIN, with_token};

mod token;

#[test]
fn what_the_public_key_wraps_the_private_key_unwraps() {
    with_token("what_the_public_key_wraps_the_private_key_unwraps", |directory| {
        let hsm = Hsm::open(settings()).unwrap();

        let wrapped = hsm.wrap_key(KEY, SHA1, b"a key").unwrap();
        assert_ne!(wrapped, hsm.wrap_key(KEY, SHA1, b"a key").unwrap());
        assert_eq!(hsm.unwrap_key(KEY, SHA1, &wrapped).unwrap().as_slice(), b"a key");
        assert!(hsm.unwrap_key(KEY, SHA1, &hsm.wrap_key(KEY, SHA1, b"").unwrap()).unwrap().is_empty());

        let wrapped_elsewhere = wrap_without_token(directory, b"another key");
        assert_eq!(hsm.unwrap_key(KEY, SHA1, &wrapped_elsewhere).unwrap().as_slice(), b"another key");
    });
}

#[test]
fn what_can_not_be_wrapped_or_unwrapped_is_refused_with_its_reason() {
    with_token("what_can_not_be_wrapped_or_unwrapped_is_refused_with_its_reason", |_| {
        let hsm = Hsm::open(settings()).unwrap();
        let mut flipped = hsm.wrap_key(KEY, SHA1, b"a key").unwrap();
        flipped[100] ^= 1;
        for bad in [&flipped[..], &flipped[..255], b"", &[0; 256], &[255; 256], &[7; 300]] {
            let refused = hsm.unwrap_key(KEY, SHA1, bad);
            assert!(matches!(refused, Err(Error::NotWrapped(_))), "{:?}", refused.err());
        }
        assert!(matches!(hsm.wrap_key("other", SHA1, b"x"), Err(Error::NoKey { class: "public", .. })));
        assert!(matches!(hsm.unwrap_key("other", SHA1, b"x"), Err(Error::NoKey { class: "private", .. })));
        // 256 bytes of a key less the padding of OAEP with SHA-1.
        assert!(hsm.wrap_key(KEY, SHA1, &[0; 214]).is_ok());
        assert!(matches!(hsm.wrap_key(KEY, SHA1, &[0; 215]), Err(Error::TooLong(_))));
        assert!(matches!(hsm.wrap_key(KEY, SHA1, &[0; MAX_WRAPPED + 1]), Err(Error::TooLarge { .. })));
        assert!(matches!(hsm.unwrap_key(KEY, SHA1, &[0; MAX_WRAPPED + 1]), Err(Error::TooLarge { .. })));
        // SoftHSM has OAEP with SHA-1 only.
        let error = hsm.wrap_key(KEY, RsaMechanism::RsaPkcsOaep, b"x").unwrap_err();
        assert!(matches!(error, Error::Mechanism { .. }) && error.to_string().contains("SHA-256"), "{error}");
        assert_eq!(hsm.unwrap_key(KEY, SHA1, &hsm.wrap_key(KEY, SHA1, b"y").unwrap()).unwrap().as_slice(), b"y");
    });
}

#[test]
fn a_secret_stays_in_the_token_and_is_replaced() {
    with_token("a_secret_stays_in_the_token_and_is_replaced", |_| {
        let hsm = Hsm::open(settings()).unwrap();
        assert!(hsm.read("default/key/1").unwrap().is_none());
        hsm.write("default/key/1", b"first").unwrap();
        hsm.write("default/key/1", b"second").unwrap();
        hsm.write("default/key/2", &[7; 100_000]).unwrap();
        drop(hsm);

        let hsm = Hsm::open(settings()).unwrap();
        assert_eq!(hsm.read("default/key/1").unwrap().unwrap().as_slice(), b"second");
        assert_eq!(hsm.read("default/key/2").unwrap().unwrap().as_slice(), [7; 100_000]);
        let listed = tool(&["--list-objects", "--type", "secrkey"]);
        assert_eq!(String::from_utf8_lossy(&listed).matches("default/key/1").count(), 1);
        assert!(matches!(hsm.write("default/key/3", &vec![0; MAX_OBJECT + 1]), Err(Error::TooLarge { .. })));
    });
}

#[test]
fn a_key_that_the_token_keeps_is_not_read() {
    with_token("a_key_that_the_token_keeps_is_not_read", |_| {
        tool(&["--keygen", "--key-type", "aes:32", "--label", "kept", "--sensitive"]);
        let hsm = Hsm::open(settings()).unwrap();
        assert!(matches!(hsm.read("kept"), Err(Error::Sensitive(_))));
        assert!(hsm.read(KEY).unwrap().is_none());
    });
}

#[test]
fn more_callers_than_sessions_all_get_their_turn() {
    with_token("more_callers_than_sessions_all_get_their_turn", |_| {
        let hsm = Hsm::open(settings()).unwrap();
        let callers = 3 * MAX_SESSIONS;
        let together = Barrier::new(callers);
        std::thread::scope(|scope| {
            for caller in 0..callers {
                let (hsm, together) = (&hsm, &together);
                scope.spawn(move || {
                    together.wait();
                    let label = format!("default/key/{}", caller % 4);
                    hsm.write(&label, format!("{caller}").as_bytes()).unwrap();
                    let read = hsm.read(&label).unwrap().unwrap();
                    assert_eq!(std::str::from_utf8(&read).unwrap().parse::<usize>().unwrap() % 4, caller % 4);
                    let wrapped = hsm.wrap_key(KEY, SHA1, label.as_bytes()).unwrap();
                    assert_eq!(hsm.unwrap_key(KEY, SHA1, &wrapped).unwrap().as_slice(), label.as_bytes());
                });
            }
        });
    });
}

#[test]
fn a_lost_session_or_login_is_replaced() {
    with_token("a_lost_session_or_login_is_replaced", |_| {
        let hsm = Hsm::open(settings()).unwrap();
        hsm.write("default/key/1", b"private").unwrap();
        let other = Pkcs11::new(MODULE).unwrap();
        let slot = other.get_slots_with_initialized_token().unwrap()[0];

        other.clone().finalize().unwrap();
        assert_eq!(hsm.read("default/key/1").unwrap().unwrap().as_slice(), b"private");

        other.clone().finalize().unwrap();
        other.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
        assert_eq!(hsm.read("default/key/1").unwrap().unwrap().as_slice(), b"private");

        other.open_rw_session(slot).unwrap().logout().unwrap();
        assert_eq!(hsm.read("default/key/1").unwrap().unwrap().as_slice(), b"private");
    });
}

#[test]
fn a_refused_pin_is_not_tried_again_until_another_is_set() {
    with_token("a_refused_pin_is_not_tried_again_until_another_is_set", |directory| {
        let file = directory.join("pin");
        let set = |pin: &str| {
            std::fs::write(&file, pin).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        };
        set(&format!("{PIN}\n"));
        let hsm = Hsm::open(HsmSettings { pin: Pin::File(file.clone()), ..settings() }).unwrap();
        let other = Pkcs11::new(MODULE).unwrap();
        let slot = other.get_slots_with_initialized_token().unwrap()[0];

        set("wrong-pin");
        other.open_rw_session(slot).unwrap().logout().unwrap();
        for _ in 0..2 {
            let error = hsm.read("x").unwrap_err();
            assert!(matches!(error, Error::PinRefused(_)), "{error}");
            assert!(!format!("{error} {error:?}").contains("wrong-pin"));
        }
        // With the PIN of before the refusal is remembered, whatever the token would say by now.
        let session = other.open_rw_session(slot).unwrap();
        let changed = (AuthPin::from(PIN), AuthPin::from("wrong-pin"));
        session.login(UserType::User, Some(&changed.0)).unwrap();
        session.set_pin(&changed.0, &changed.1).unwrap();
        session.logout().unwrap();
        assert!(matches!(hsm.read("x"), Err(Error::PinRefused(_))));

        session.login(UserType::User, Some(&changed.1)).unwrap();
        session.set_pin(&changed.1, &changed.0).unwrap();
        session.logout().unwrap();
        set(PIN);
        assert!(hsm.read("x").unwrap().is_none());
    });
}

#[test]
fn a_wrong_module_token_or_pin_is_told() {
    with_token("a_wrong_module_token_or_pin_is_told", |directory| {
        let open = |settings| Hsm::open(settings).err().unwrap();
        let module = directory.join("softhsm2.conf");
        assert!(matches!(open(HsmSettings { module, ..settings() }), Error::Module { .. }));
        for token in [Token::Index(7), Token::Label("other".to_owned())] {
            assert!(matches!(open(HsmSettings { token, ..settings() }), Error::NoToken { .. }));
        }
        let pin = Pin::Value("secret-pin".to_owned().into());
        let error = open(HsmSettings { pin, ..settings() });
        assert!(matches!(error, Error::PinRefused(_)));
        assert!(!format!("{error} {error:?}").contains("secret-pin"));

        assert!(Hsm::open(HsmSettings { token: Token::Index(0), ..settings() }).is_ok());
        assert!(Hsm::open(HsmSettings { token: Token::Label(LABEL.to_owned()), ..settings() }).is_ok());
    });
}

#[test]
fn a_master_key_is_made_once_and_opens_with_the_token_only() {
    with_token("a_master_key_is_made_once_and_opens_with_the_token_only", |directory| {
        let hsm = Hsm::open(settings()).unwrap();
        let file = directory.join("master.wrapped");
        let key = hsm.master_key("trustee-master-key", &file).unwrap();
        assert_ne!(*key, [0; 32]);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        drop(hsm);

        let hsm = Hsm::open(settings()).unwrap();
        assert_eq!(*hsm.master_key("trustee-master-key", &file).unwrap(), *key);
        let wrapped = std::fs::read(&file).unwrap();
        assert!(!wrapped.windows(8).any(|window| window == &key[..8]));
        assert!(matches!(hsm.unwrap_master_key("other", &wrapped), Err(Error::NoKey { .. })));

        hsm.wrap_master_key("other", &key).unwrap();
        assert!(matches!(hsm.unwrap_master_key("other", &wrapped), Err(Error::NotWrapped(_))));
        for i in 0..wrapped.len() {
            let mut changed = wrapped.clone();
            changed[i] ^= 1;
            std::fs::write(&file, &changed).unwrap();
            assert!(matches!(hsm.master_key("trustee-master-key", &file), Err(Error::NotWrapped(_))), "byte {i}");
        }
        for bad in [&wrapped[..60], &[&wrapped[..], &[0]].concat(), b""] {
            assert!(matches!(hsm.unwrap_master_key("trustee-master-key", bad), Err(Error::NotWrapped(_))));
        }
        let nowhere = directory.join("absent").join("master.wrapped");
        assert!(matches!(hsm.master_key("trustee-master-key", &nowhere), Err(Error::WrappedFile { .. })));
    });
}

#[test]
fn two_sealing_keys_of_one_label_both_open() {
    with_token("two_sealing_keys_of_one_label_both_open", |_| {
        let hsm = Hsm::open(settings()).unwrap();
        let first = hsm.wrap_master_key("sealing", &[1; 32]).unwrap();
        tool(&["--keygen", "--key-type", "aes:32", "--label", "sealing", "--sensitive"]);
        let second = hsm.wrap_master_key("sealing", &[2; 32]).unwrap();
        assert_eq!(*hsm.unwrap_master_key("sealing", &first).unwrap(), [1; 32]);
        assert_eq!(*hsm.unwrap_master_key("sealing", &second).unwrap(), [2; 32]);
    });
}

fn settings() -> HsmSettings {
    HsmSettings {
        module: PathBuf::from(MODULE),
        token: Token::Label(LABEL.to_owned()),
        pin: Pin::Value(PIN.to_owned().into()),
    }
}

/// Encrypts to the token's public key with no more than its DER form.
fn wrap_without_token(directory: &Path, value: &[u8]) -> Vec<u8> {
    let file = directory.join("public.der");
    tool(&["--read-object", "--type", "pubkey", "--label", KEY, "--output-file", file.to_str().unwrap()]);
    let key = PublicEncryptingKey::from_der(&std::fs::read(file).unwrap()).unwrap();
    let key = OaepPublicEncryptingKey::new(key).unwrap();
    let mut wrapped = vec![0; key.ciphertext_size()];
    key.encrypt(&OAEP_SHA1_MGF1SHA1, value, &mut wrapped, None).unwrap();
    wrapped
}

fn tool(arguments: &[&str]) -> Vec<u8> {
    let mut command = Command::new("pkcs11-tool");
    command.args(["--module", MODULE, "--login", "--pin", PIN]).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output.stdout
}

const SHA1: RsaMechanism = RsaMechanism::RsaPkcsTest;
