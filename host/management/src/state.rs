//! What a pod's owner knows of it at a moment.

use std::time::SystemTime;

use sandbox::Timeline;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::Identity;

/// What a pod's owner knows of it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct State {
    /// Whose it is.
    pub pod: Identity,
    /// The process id of its machine, once it has one.
    pub machine: Option<u32>,
    /// Why its machine has ended, if it has.
    pub ended: Option<String>,
    /// When it reached what.
    pub timeline: Vec<Moment>,
    /// Its containers, but the one that stands for the pod.
    pub containers: Vec<ContainerState>,
    /// The last requests that failed, oldest first.
    pub troubles: Vec<Trouble>,
}

/// A point in a pod's life.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Moment {
    /// The point.
    pub event: String,
    /// Seconds since the first.
    pub seconds: f64,
}

impl Moment {
    /// All points of a timeline.
    pub fn of(timeline: &Timeline) -> Vec<Self> {
        let events = timeline.events().into_iter();
        events.map(|(event, at)| Self { event: event.to_string(), seconds: at.as_secs_f64() }).collect()
    }
}

/// A container of a pod.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct ContainerState {
    /// Its id.
    pub id: String,
    /// Its name in Kubernetes; empty elsewhere.
    pub name: String,
    /// `created`, `running`, `paused`, `ended` or `removed`.
    pub phase: String,
    /// Its exit status, if it has ended.
    pub exit_status: Option<u32>,
    /// The folder with its specification, if there is one.
    pub bundle: Option<String>,
}

/// A request that failed.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Trouble {
    /// When, as RFC 3339 has it, in UTC.
    pub at: String,
    /// What was asked.
    pub request: String,
    /// For which container; empty for the pod.
    pub container: String,
    /// Why it failed, with the next step.
    pub error: String,
    /// Whether the guest's policy refused.
    pub refused: bool,
}

/// Now, as RFC 3339 has it, in UTC.
pub fn now() -> String {
    // A year of four digits can't fail.
    OffsetDateTime::from(SystemTime::now()).format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox::Event;
    use std::time::{Duration, Instant};

    #[test]
    fn times_are_in_utc_and_moments_in_seconds() {
        let now = now();
        assert!(now.starts_with("20") && now.contains('T') && now.ends_with('Z'), "{now}");
        let (timeline, start) = (Timeline::default(), Instant::now());
        timeline.note(Event::VmmStart, start);
        timeline.note(Event::Kernel, start + Duration::from_millis(1500));
        let moments = Moment::of(&timeline);
        assert_eq!(moments[1], Moment { event: "kernel up".to_owned(), seconds: 1.5 });
    }
}
