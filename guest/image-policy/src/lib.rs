//! Who must have signed an image: the containers policy, simple signing and sigstore.

#![forbid(unsafe_code)]
