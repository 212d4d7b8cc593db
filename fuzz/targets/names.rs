//! Names of resources and blobs, tokens, and lines of a guest's console.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::blob::BlobDigest;
use wire::milestone::Milestone;
use wire::resource::{ResourcePath, ResourceUri};
use wire::token;

fuzz_target!(|text: &str| {
    if let Ok(uri) = ResourceUri::parse(text) {
        assert_eq!(ResourceUri::parse(&uri.to_string()).expect("its own form"), uri);
    }
    if let Ok(digest) = BlobDigest::from_path(text) {
        assert_eq!(digest.path(), text);
    }
    let _ = ResourcePath::parse(text);
    let _ = token::unverified_claims(text);
    let _ = Milestone::parse(text);
});
