//! What was measured, by names that tell the unit.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Samples of many things.
#[derive(Default)]
pub struct Samples(BTreeMap<&'static str, Vec<f64>>);

impl Samples {
    /// Adds one.
    pub fn add(&mut self, name: &'static str, value: f64) {
        self.0.entry(name).or_default().push(value);
    }

    /// Adds the time in milliseconds that something takes.
    pub async fn time<T>(&mut self, name: &'static str, work: impl Future<Output = T>) -> T {
        let start = Instant::now();
        let done = work.await;
        self.add(name, milliseconds(start.elapsed()));
        done
    }

    /// The median of one thing's samples.
    pub fn median(&self, name: &str) -> f64 {
        median(self.0[name].clone())
    }

    /// The median of the ratios of two things that were measured in turn.
    pub fn ratio(&self, name: &str, baseline: &str) -> f64 {
        median(self.0[name].iter().zip(&self.0[baseline]).map(|(value, baseline)| value / baseline).collect())
    }

    /// The medians of all.
    pub fn medians(&self) -> Value {
        self.0
            .keys()
            .map(|name| ((*name).to_owned(), self.median(name).into()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

/// A time in milliseconds.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
