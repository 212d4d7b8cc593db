//! Pods that containerd runs on a node, as a kubelet asks for them.

#![allow(clippy::unwrap_used)]

mod faults;
mod ground;
mod laboratory;
mod installed;
mod life;
mod page;
mod policy;
mod rounds;
mod world;
