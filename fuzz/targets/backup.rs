//! Backups as an untrusted place keeps them: none is read but the one that was written.
#![no_main]

use std::io::Cursor;
use std::sync::LazyLock;

use fuzz::runtime;
use libfuzzer_sys::fuzz_target;
use store::backup::{Header, Target};
use store::{Key, MasterKey, Namespace, Store};
use tokio::runtime::Runtime;

static WRITTEN: LazyLock<Written> = LazyLock::new(Written::new);

struct Written {
    runtime: Runtime,
    store: Store,
    key: MasterKey,
    backup: Vec<u8>,
}

// Two bytes say from where on the others replace those of the backup.
fuzz_target!(|bytes: &[u8]| {
    let _ = Header::parse(bytes);
    assert!(!WRITTEN.is_read(bytes.to_vec()));
    let Some((at, change)) = bytes.split_first_chunk() else { return };
    let at = usize::from(u16::from_be_bytes(*at)) % (WRITTEN.backup.len() + 1);
    let cut = [&WRITTEN.backup[..at], change].concat();
    let rest = WRITTEN.backup.get(cut.len()..).unwrap_or_default();
    for changed in [[&cut, rest].concat(), cut] {
        let unchanged = changed == WRITTEN.backup;
        assert_eq!(WRITTEN.is_read(changed), unchanged);
    }
});

impl Written {
    fn new() -> Self {
        let runtime = runtime();
        let key = MasterKey::from_bytes(&[7; 32]).expect("32 bytes");
        let (store, backup) = runtime.block_on(async {
            let store = Store::memory().await.expect("a store");
            let name = Key::parse("a/b/c").expect("a key");
            store.put(Namespace::new("fuzz"), &name, b"a secret").await.expect("an entry");
            let mut backup = Vec::new();
            store.export(&mut backup, Some(&key)).await.expect("a backup");
            (store, backup)
        });
        Self { runtime, store, key, backup }
    }

    fn is_read(&self, backup: Vec<u8>) -> bool {
        self.runtime.block_on(self.store.import(Cursor::new(backup), Some(&self.key), Target::Any)).is_ok()
    }
}
