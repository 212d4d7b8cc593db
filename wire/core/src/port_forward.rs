//! Forwarded ports: how a host asks its guest for a connection to a port of the guest's loopback interface.
//!
//! The host connects to vsock port [`PORT`] and sends the number of the port it wants, two bytes in network order. The
//! guest answers with one byte, an [`Answer`]. After [`Answer::Connected`] the connection is the port's, in both directions
//! and until either end has said all; after every other answer the guest closes it.

use std::fmt;

/// The guest's vsock port.
pub const PORT: u32 = 1031;

/// What became of a wish for a port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// What follows is the port's.
    Connected,
    /// The policy in the guest does not allow it.
    Denied,
    /// Nothing listens on that port.
    Closed,
    /// The port belongs to the guest itself: no policy opens it.
    Withheld,
}

impl Answer {
    /// The answer on the wire.
    pub fn byte(self) -> u8 {
        match self {
            Self::Connected => 0,
            Self::Denied => 1,
            Self::Closed => 2,
            Self::Withheld => 3,
        }
    }

    /// The answer that a byte stands for; `None` if for none.
    pub fn of_byte(byte: u8) -> Option<Self> {
        [Self::Connected, Self::Denied, Self::Closed, Self::Withheld].into_iter().find(|answer| answer.byte() == byte)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connected => "the guest connected it",
            Self::Denied => "the policy in the guest has no rule PortForwardRequest that allows it",
            Self::Closed => "nothing listens on the guest's loopback interface",
            Self::Withheld => "the port is the guest's own, which no policy opens",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_read_as_it_was_written_and_every_other_byte_is_none() {
        let read: Vec<_> = (0..=u8::MAX).filter_map(Answer::of_byte).collect();
        assert_eq!(read, [Answer::Connected, Answer::Denied, Answer::Closed, Answer::Withheld]);
        assert!(read.iter().all(|answer| Answer::of_byte(answer.byte()) == Some(*answer)));
    }
}
