//! Pods that containerd runs on a node, as a kubelet asks for them.

#![allow(clippy::unwrap_used)]

mod bad;
mod faults;
mod ground;
mod installed;
mod laboratory;
mod life;
mod many;
mod network;
mod observe;
mod page;
mod policy;
mod rounds;
mod shortage;
mod volumes;
mod world;
