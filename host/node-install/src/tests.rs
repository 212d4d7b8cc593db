//! Whole operations on a node's files, with the real containerd of both lines where it can be had.

mod configurations;
pub(crate) mod crash;
mod distributions;
mod ground;
mod upgrades;
