//! The clock of everything that expires, and points in time as RFC 3339 writes them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Where the time comes from: the system, or a test.
#[derive(Clone)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    System,
    Set(Arc<AtomicU64>),
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands at the given number of seconds since 1970 until someone changes it.
    pub fn set_by(seconds: Arc<AtomicU64>) -> Self {
        Self(Source::Set(seconds))
    }

    /// The present time.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => {
                Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().min(MAX))
            }
            Source::Set(seconds) => Timestamp(seconds.load(Ordering::Relaxed).min(MAX)),
        }
    }
}

/// Whole seconds since 1970 in UTC, at most the year 9999; written as `2026-11-24T23:59:59Z`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(u64);

impl Timestamp {
    /// The time so many seconds after 1970, cut off at the end of 9999.
    pub fn from_unix(seconds: u64) -> Self {
        Self(seconds.min(MAX))
    }

    /// Seconds since 1970.
    pub fn unix(self) -> u64 {
        self.0
    }

    /// Year, month (1 to 12) and day (1 to 31).
    pub fn date(self) -> (u16, u8, u8) {
        let (year, month, day) = date(self.0 / DAY);
        // At most the year 9999: nothing is cut off.
        (year as u16, month as u8, day as u8)
    }

    /// This time and a duration.
    pub fn after(self, duration: Duration) -> Self {
        Self::from_unix(self.0.saturating_add(duration.as_secs()))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date(self.0 / DAY);
        let (hour, minute, second) = (self.0 % DAY / 3600, self.0 % 3600 / 60, self.0 % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

impl FromStr for Timestamp {
    type Err = NotATime;

    fn from_str(text: &str) -> Result<Self, NotATime> {
        let number = |range: std::ops::Range<usize>| {
            let digits = text.get(range).filter(|part| part.bytes().all(|b| b.is_ascii_digit())).ok_or(NotATime)?;
            digits.parse::<u64>().map_err(|_| NotATime)
        };
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
        if year < 1970 || !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 59 {
            return Err(NotATime);
        }
        let time = Self(days(year, month, day) * DAY + hour * 3600 + minute * 60 + second);
        // Whatever the fields allow beyond the calendar, such as 30 February, is not written the same way again.
        if time.to_string() == text { Ok(time) } else { Err(NotATime) }
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> Self {
        time.to_string()
    }
}

impl TryFrom<String> for Timestamp {
    type Error = NotATime;

    fn try_from(text: String) -> Result<Self, NotATime> {
        text.parse()
    }
}

/// The text is not a time of the form that [`Timestamp`] writes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a time such as 2026-11-24T23:59:59Z")]
pub struct NotATime;

/// Year, month and day of a day after 1970-01-01, by counting years that start in March so that the leap day
/// comes last.
fn date(days_since_1970: u64) -> (u64, u64, u64) {
    let z = days_since_1970 + SHIFT;
    let era = z / ERA;
    let day_of_era = z % ERA;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * month + 2) / 5 + day;
    // One more than the day's index, which the shift takes back: `day` starts at 1 and may be 0 in a bad date.
    (era * ERA + year_of_era * 365 + year_of_era / 4 + day_of_year).saturating_sub(year_of_era / 100 + SHIFT + 1)
}

const DAY: u64 = 86_400;
/// Days of 400 years.
const ERA: u64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const SHIFT: u64 = 719_468;
/// 9999-12-31T23:59:59Z.
const MAX: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_times_are_written_as_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_000_000_000, "2001-09-09T01:46:40Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (MAX, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(Timestamp(seconds).to_string(), text);
            assert_eq!(text.parse(), Ok(Timestamp(seconds)));
        }
        assert_eq!(Timestamp::from_unix(u64::MAX).unix(), MAX);
    }

    #[test]
    fn what_is_not_in_the_calendar_is_refused() {
        for bad in [
            "",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01 00:00:00Z",
            "2026-01-01T00:00:00+01:00",
            "+026-01-01T00:00:00Z",
        ] {
            assert_eq!(bad.parse::<Timestamp>(), Err(NotATime), "{bad:?}");
        }
    }

    #[test]
    fn a_set_clock_moves_when_told() {
        let seconds = Arc::new(AtomicU64::new(5));
        let clock = Clock::set_by(seconds.clone());
        assert_eq!(clock.now().after(Duration::from_secs(60)).unix(), 65);
        seconds.store(7, Ordering::Relaxed);
        assert_eq!(clock.now().unix(), 7);
    }

    proptest! {
        #[test]
        fn every_time_survives_writing(seconds in 0..=MAX) {
            prop_assert_eq!(Timestamp(seconds).to_string().parse(), Ok(Timestamp(seconds)));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,30}") {
            let _ = text.parse::<Timestamp>();
        }
    }
}
