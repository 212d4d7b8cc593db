//! A load generator for key brokers: guests of the sample TEE on kept connections, against any server given by URL.

mod connection;
mod guest;
mod measure;

pub use connection::{Connection, Target};
pub use guest::{Failure, Guest};
pub use measure::{Figures, run};
