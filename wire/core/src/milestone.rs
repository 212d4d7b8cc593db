//! The lines with which a guest tells its console how far it is: the host waits for them and draws a timeline.
//!
//! The host must not trust them for anything else, and the guest must not put a secret into one.

use std::fmt;

/// A point that a guest has reached.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Milestone {
    /// The kernel has started guestd.
    Init,
    /// The guest answers requests.
    Ready,
    /// Trustee has given the guest its first attestation token.
    Attested,
    /// A container's image is unpacked; its manifest digest.
    Image(String),
    /// The guest gave up; stage and cause in one line.
    Refused(String),
}

impl Milestone {
    /// Reads a line of the console; `None` for all other lines.
    pub fn parse(line: &str) -> Option<Self> {
        let text = line.trim_end().strip_prefix(PREFIX)?;
        match text.split_once(' ') {
            None if text == INIT => Some(Self::Init),
            None if text == READY => Some(Self::Ready),
            None if text == ATTESTED => Some(Self::Attested),
            Some((IMAGE, digest)) => Some(Self::Image(digest.to_owned())),
            Some((REFUSED, reason)) => Some(Self::Refused(reason.to_owned())),
            _ => None,
        }
    }
}

impl fmt::Display for Milestone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        match self {
            Self::Init => f.write_str(INIT),
            Self::Ready => f.write_str(READY),
            Self::Attested => f.write_str(ATTESTED),
            Self::Image(digest) => write!(f, "{IMAGE} {}", one_line(digest)),
            Self::Refused(reason) => write!(f, "{REFUSED} {}", one_line(reason)),
        }
    }
}

fn one_line(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

const PREFIX: &str = "cocoon: ";
const INIT: &str = "init";
const READY: &str = "ready";
const ATTESTED: &str = "attested";
const IMAGE: &str = "image";
const REFUSED: &str = "refused";
/// Keeps a line below what a console buffers.
const MAX_TEXT: usize = 900;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_milestone_is_read_back() {
        for milestone in [
            Milestone::Init,
            Milestone::Ready,
            Milestone::Attested,
            Milestone::Image("sha256:00".to_owned()),
            Milestone::Refused("initdata: its digest is another".to_owned()),
        ] {
            assert_eq!(Milestone::parse(&format!("{milestone}\r\n")), Some(milestone));
        }
        assert_eq!(Milestone::parse("[    0.1] Linux version 6.12"), None);
        assert_eq!(Milestone::Refused("a\nb".to_owned()).to_string(), "cocoon: refused a b");
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in "(cocoon: )?\\PC{0,200}") {
            let _ = Milestone::parse(&line);
        }
    }
}
