//! Flow control: how many bytes each side may send before the other has made room.
//!
//! Both counters of the protocol are free-running 32-bit numbers, so every comparison here is a wrapping difference.
//!
//! Source: virtio 1.2, section 5.10.6.3 (buffer space management).

use std::num::Wrapping;

/// What the host may still send to the guest.
#[derive(Debug)]
pub(crate) struct SendCredit {
    guest_buffer: u32,
    guest_forwarded: Wrapping<u32>,
    sent: Wrapping<u32>,
}

impl SendCredit {
    /// No credit until the guest has said something.
    pub(crate) fn new() -> Self {
        Self { guest_buffer: 0, guest_forwarded: Wrapping(0), sent: Wrapping(0) }
    }

    /// Takes `buf_alloc` and `fwd_cnt` of a packet from the guest.
    ///
    /// A count that steps back is stale: a guest with several CPUs may queue packets in another order than it
    /// built them. A count beyond what was sent is a lie.
    pub(crate) fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) -> Result<(), Overrun> {
        let advance = Wrapping(fwd_cnt) - self.guest_forwarded;
        if advance <= self.in_flight() {
            self.guest_forwarded = Wrapping(fwd_cnt);
            self.guest_buffer = buf_alloc;
            return Ok(());
        }
        if advance.0 > u32::MAX / 2 { Ok(()) } else { Err(Overrun) }
    }

    /// Bytes that may be sent now.
    pub(crate) fn available(&self) -> usize {
        // A guest may shrink its buffer below what is on the way.
        self.guest_buffer.saturating_sub(self.in_flight().0) as usize
    }

    /// Counts `len` bytes as sent; `len` must not exceed [`SendCredit::available`].
    pub(crate) fn consume(&mut self, len: usize) {
        debug_assert!(len <= self.available());
        self.sent += len as u32;
    }

    fn in_flight(&self) -> Wrapping<u32> {
        self.sent - self.guest_forwarded
    }
}

/// What the guest may still send to the host.
#[derive(Debug)]
pub(crate) struct ReceiveCredit {
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    announced: Wrapping<u32>,
}

impl ReceiveCredit {
    /// The host's buffer for one connection: the guest never has more than this on the way.
    pub(crate) const BUFFER: u32 = 128 << 10;

    pub(crate) fn new() -> Self {
        Self { received: Wrapping(0), forwarded: Wrapping(0), announced: Wrapping(0) }
    }

    /// Counts `len` bytes that came from the guest, or refuses them where they do not fit into the buffer.
    pub(crate) fn receive(&mut self, len: usize) -> Result<(), Overrun> {
        if len > (Self::BUFFER - (self.received - self.forwarded).0) as usize {
            return Err(Overrun);
        }
        self.received += len as u32;
        Ok(())
    }

    /// Counts `len` bytes that have left the buffer.
    pub(crate) fn forward(&mut self, len: usize) {
        self.forwarded += len as u32;
    }

    /// The `fwd_cnt` for a packet to the guest; from now on the guest counts as told.
    pub(crate) fn announce(&mut self) -> u32 {
        self.announced = self.forwarded;
        self.forwarded.0
    }

    /// Whether the guest should be told: it sees half of the buffer or less as free, and more of it is.
    pub(crate) fn wants_update(&self) -> bool {
        let seen_as_full = (self.received - self.announced).0;
        self.announced != self.forwarded && seen_as_full >= Self::BUFFER / 2
    }
}

/// The guest sent, or claims to have taken, more than it was allowed to.
#[derive(Debug, PartialEq)]
pub(crate) struct Overrun;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_sends_no_more_than_the_guest_has_room_for() {
        let mut credit = SendCredit::new();
        assert_eq!(credit.available(), 0);

        credit.update(100, 0).unwrap();
        credit.consume(60);
        assert_eq!(credit.available(), 40);

        credit.update(100, 60).unwrap();
        assert_eq!(credit.available(), 100);
    }

    #[test]
    fn counts_of_the_guest_are_checked() {
        for (fwd_cnt, verdict, available) in [
            (50, Ok(()), 90),            // ten more taken
            (40, Ok(()), 80),            // nothing new
            (39, Ok(()), 80),            // stale: older than what is known
            (u32::MAX, Ok(()), 80),      // stale as well: before the counter's start
            (60, Ok(()), 100),           // everything taken
            (61, Err(Overrun), 80),      // never sent
            (1 << 31, Err(Overrun), 80), // never sent
        ] {
            let mut credit = SendCredit::new();
            credit.update(100, 0).unwrap();
            credit.consume(60);
            credit.update(100, 40).unwrap();

            assert_eq!(credit.update(100, fwd_cnt), verdict, "fwd_cnt {fwd_cnt}");
            assert_eq!(credit.available(), available, "fwd_cnt {fwd_cnt}");
        }
    }

    #[test]
    fn counters_wrap_around() {
        let mut credit = SendCredit::new();
        for lap in 0..5_u32 {
            credit.update(u32::MAX, (1_u32 << 30).wrapping_mul(lap)).unwrap();
            credit.consume(1 << 30);
        }
        assert_eq!(credit.available(), u32::MAX as usize - (1 << 30));
    }

    #[test]
    fn a_guest_that_shrinks_its_buffer_gets_nothing_until_it_has_caught_up() {
        let mut credit = SendCredit::new();
        credit.update(100, 0).unwrap();
        credit.consume(60);
        credit.update(10, 0).unwrap();
        assert_eq!(credit.available(), 0);
        credit.update(10, 55).unwrap();
        assert_eq!(credit.available(), 5);
    }

    #[test]
    fn the_guest_sends_no_more_than_fits() {
        let mut credit = ReceiveCredit::new();
        let buffer = ReceiveCredit::BUFFER as usize;
        credit.receive(buffer).unwrap();
        assert_eq!(credit.receive(1), Err(Overrun));
        credit.forward(10);
        assert_eq!(credit.receive(11), Err(Overrun));
        credit.receive(10).unwrap();
    }

    #[test]
    fn the_guest_is_told_when_half_of_the_buffer_looks_full() {
        let mut credit = ReceiveCredit::new();
        let half = ReceiveCredit::BUFFER as usize / 2;

        credit.receive(half - 1).unwrap();
        credit.forward(half - 1);
        assert!(!credit.wants_update(), "the guest sees more than half of the buffer as free");

        credit.receive(1).unwrap();
        assert!(credit.wants_update());
        assert_eq!(credit.announce(), half as u32 - 1);
        assert!(!credit.wants_update());
    }
}
