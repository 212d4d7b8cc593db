//! The time as signatures have it: RFC 3339 in UTC, with and without its marks.

use std::time::{SystemTime, UNIX_EPOCH};

/// A second in UTC.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Utc {
    date: (u64, u64, u64),
    second: u64,
}

impl Utc {
    pub(crate) fn now() -> Self {
        Self::at(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }

    /// `unix` seconds after the beginning of 1970.
    pub(crate) fn at(unix: u64) -> Self {
        // Years begin in March, so that the day that some lack comes last; eras of 400 years are all alike.
        let days = unix / DAY + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
        let year = era * 400 + year + u64::from(month <= 2);
        Self { date: (year, month, day), second: unix % DAY }
    }

    /// As in `20150830`.
    pub(crate) fn day(&self) -> String {
        let (year, month, day) = self.date;
        format!("{year:04}{month:02}{day:02}")
    }

    /// As in `20150830T123600Z`.
    pub(crate) fn compact(&self) -> String {
        let (hour, minute, second) = self.clock();
        format!("{}T{hour:02}{minute:02}{second:02}Z", self.day())
    }

    /// As in `2015-08-30T12:36:00Z`.
    pub(crate) fn extended(&self) -> String {
        let ((year, month, day), (hour, minute, second)) = (self.date, self.clock());
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }

    fn clock(&self) -> (u64, u64, u64) {
        (self.second / 3600, self.second / 60 % 60, self.second % 60)
    }
}

const DAY: u64 = 86_400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_seconds_have_their_dates() {
        for (unix, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_440_938_160, "2015-08-30T12:36:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(Utc::at(unix).extended(), expected);
        }
        assert_eq!(Utc::at(1_440_938_160).compact(), "20150830T123600Z");
    }
}
