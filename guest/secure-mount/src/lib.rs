//! Volumes for containers: LUKS2 with and without integrity, opened, made, mounted and released.

#![forbid(unsafe_code)]
