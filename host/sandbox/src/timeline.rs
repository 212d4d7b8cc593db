//! When a pod reached what: the points between the wish for it and the first output of a container.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A point in the life of a pod.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Event {
    /// The pod's machine is wished for.
    Asked,
    /// Folder, disks and network are there, and QEMU is started; everything else counts from here.
    VmmStart,
    /// QEMU has built the machine, which runs.
    Launched,
    /// The guest's kernel has started guestd.
    Kernel,
    /// guestd says that it is ready.
    GuestReady,
    /// guestd has answered the first request.
    FirstAnswer,
    /// The guest has its network.
    Networked,
    /// The guest is a sandbox.
    SandboxReady,
    /// Trustee has given the guest a token.
    Attested,
    /// The container's image is unpacked in the guest.
    ImageReady,
    /// The container has been created.
    Created,
    /// The container's process runs.
    Started,
    /// The container has written its first byte.
    FirstOutput,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "asked for",
            Self::VmmStart => "VMM start",
            Self::Launched => "VMM runs",
            Self::Kernel => "kernel up",
            Self::GuestReady => "guestd ready",
            Self::FirstAnswer => "first answer",
            Self::Networked => "network",
            Self::SandboxReady => "sandbox",
            Self::Attested => "attested",
            Self::ImageReady => "image ready",
            Self::Created => "created",
            Self::Started => "started",
            Self::FirstOutput => "first output",
        })
    }
}

/// The events of one pod, shared by all who see them happen. The first time of each event counts.
#[derive(Clone, Default)]
pub struct Timeline(Arc<Mutex<Vec<(Event, Instant)>>>);

impl Timeline {
    /// Notes that `event` happened at `time`.
    pub fn note(&self, event: Event, time: Instant) {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if events.iter().all(|(known, _)| *known != event) {
            events.push((event, time));
        }
    }

    /// All events in order of time, with the time since the first.
    pub fn events(&self) -> Vec<(Event, Duration)> {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        events.sort_by_key(|(_, time)| *time);
        let start = events.first().map(|(_, time)| *time);
        events.into_iter().zip(start.into_iter().cycle()).map(|((event, time), start)| (event, time - start)).collect()
    }

    /// Time from QEMU's start to `event`, if it has happened since.
    pub fn at(&self, event: Event) -> Option<Duration> {
        let events = self.events();
        let time = |wanted| events.iter().find(|(known, _)| *known == wanted).map(|(_, time)| *time);
        time(event)?.checked_sub(time(Event::VmmStart)?)
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (event, time)) in self.events().into_iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{:>9.3} s  {event}", time.as_secs_f64())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_shown_in_order_of_time_and_the_first_counts() {
        let (timeline, start) = (Timeline::default(), Instant::now());
        timeline.note(Event::Kernel, start + Duration::from_millis(1500));
        timeline.note(Event::VmmStart, start + Duration::from_millis(100));
        timeline.note(Event::Asked, start);
        timeline.note(Event::Kernel, start + Duration::from_secs(9));

        let lines = "    0.000 s  asked for\n    0.100 s  VMM start\n    1.500 s  kernel up";
        assert_eq!(timeline.to_string(), lines);
        assert_eq!(timeline.at(Event::Kernel), Some(Duration::from_millis(1400)));
        assert_eq!(timeline.at(Event::Asked), None);
        assert_eq!(timeline.at(Event::Attested), None);
    }
}
