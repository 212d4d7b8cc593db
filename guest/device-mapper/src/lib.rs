//! Device-mapper targets by ioctl: dm-crypt, dm-integrity and dm-verity, without a C library.

#![deny(unsafe_code)]
