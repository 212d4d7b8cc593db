//! The vhost-user device: moves packets between the guest's virtqueues and the muxer.
//!
//! Every event leads to the same round: hear the host's sockets, take the guest's packets, fill the guest's buffers,
//! until nothing is left that can move. A round is cut into slices, so that a guest that never pauses can neither
//! starve the host's sockets nor keep the worker from stopping.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackendMut, VringMutex, VringState, VringT};
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::muxer::Muxer;
use crate::packet::{Header, MAX_PAYLOAD};

/// Guest memory as vhost-user shares it.
pub(crate) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// The device behind QEMU's `vhost-user-vsock-pci`.
pub(crate) struct Device {
    guest_cid: u64,
    memory: Memory,
    muxer: Muxer,
    stop: Arc<AtomicBool>,
    /// One packet's payload on its way from one side to the other.
    payload: Box<[u8]>,
    /// The read end of the worker's exit event: the framework takes it and never closes it.
    exit: AtomicI32,
}

impl Device {
    /// `stop` ends a round early; the worker then finds its exit event.
    pub(crate) fn new(guest_cid: u64, memory: Memory, muxer: Muxer, stop: Arc<AtomicBool>) -> Self {
        let payload = vec![0; MAX_PAYLOAD].into_boxed_slice();
        Self { guest_cid, memory, muxer, stop, payload, exit: AtomicI32::new(-1) }
    }

    /// The descriptor to watch with [`HOST_EVENT`].
    pub(crate) fn host_fd(&self) -> RawFd {
        self.muxer.as_raw_fd()
    }

    fn round(&mut self, vrings: &[Vring]) -> Result<(), virtio_queue::Error> {
        let [to_guest, from_guest, ..] = vrings else { return Ok(()) };
        while !self.stop.load(Ordering::Relaxed) {
            let more_from_host = self.muxer.poll_host();
            let taken = self.take_packets(from_guest)?;
            let filled = self.fill_buffers(to_guest)?;
            let again = match taken {
                Slice::Used => true,
                Slice::Congested => filled.any,
                Slice::Empty => false,
            };
            if !(more_from_host || again || filled.more) {
                break;
            }
        }
        Ok(())
    }

    /// Takes packets off the guest's transmit queue.
    fn take_packets(&mut self, vring: &Vring) -> Result<Slice, virtio_queue::Error> {
        let mut vring = vring.get_mut();
        if !vring.is_enabled() || !vring.get_queue().ready() {
            return Ok(Slice::Empty);
        }
        let memory = self.memory.memory();
        let mut outcome = Slice::Used;
        let mut used = 0;
        vring.disable_notification()?;
        while used < SLICE {
            if self.muxer.is_congested() {
                outcome = Slice::Congested;
                break;
            }
            let Some(chain) = next_chain(&mut vring, &memory)? else {
                outcome = Slice::Empty;
                break;
            };
            let head = chain.head_index();
            self.take_packet(&memory, chain);
            vring.add_used(head, 0)?;
            used += 1;
        }
        if used > 0 && vring.needs_notification()? {
            let _ = vring.signal_used_queue();
        }
        Ok(outcome)
    }

    fn take_packet(&mut self, memory: &GuestMemoryMmap, chain: Chain) {
        let mut header = [0; Header::SIZE];
        let Ok(mut reader) = chain.reader(memory) else {
            return tracing::debug!("vsock: packet outside of the guest's memory dropped");
        };
        if reader.read_exact(&mut header).is_err() {
            return tracing::debug!("vsock: packet without a header dropped");
        }
        let header = Header::decode(&header);
        // A length beyond the limit or the descriptors is seen as a mismatch by the muxer.
        let length = (header.len as usize).min(reader.available_bytes()).min(MAX_PAYLOAD);
        let payload = &mut self.payload[..length];
        match reader.read_exact(payload) {
            Ok(()) => self.muxer.receive(&header, payload),
            Err(_) => self.muxer.receive(&header, &[]),
        }
    }

    /// Puts packets into the buffers of the guest's receive queue.
    fn fill_buffers(&mut self, vring: &Vring) -> Result<Filled, virtio_queue::Error> {
        let mut vring = vring.get_mut();
        if !vring.is_enabled() || !vring.get_queue().ready() {
            return Ok(Filled { any: false, more: false });
        }
        let memory = self.memory.memory();
        let mut used = 0;
        let mut more = false;
        // Buffers are no news while there is nothing to put into them.
        vring.disable_notification()?;
        while self.muxer.has_pending() {
            if used == SLICE {
                more = true;
                break;
            }
            let Some(chain) = next_chain(&mut vring, &memory)? else { break };
            let head = chain.head_index();
            match self.fill_buffer(&memory, chain) {
                Some(length) => vring.add_used(head, length)?,
                None => {
                    // Nothing to say after all: the buffer stays available.
                    let next = vring.get_queue().next_avail().wrapping_sub(1);
                    vring.get_queue_mut().set_next_avail(next);
                    break;
                }
            }
            used += 1;
        }
        if used > 0 && vring.needs_notification()? {
            let _ = vring.signal_used_queue();
        }
        Ok(Filled { any: used > 0, more })
    }

    /// Bytes written to one buffer: 0 if it is of no use, `None` if there was no packet.
    fn fill_buffer(&mut self, memory: &GuestMemoryMmap, chain: Chain) -> Option<u32> {
        let Ok(mut writer) = chain.writer(memory) else { return Some(0) };
        let room = writer.available_bytes().saturating_sub(Header::SIZE).min(MAX_PAYLOAD);
        if room == 0 {
            tracing::debug!("vsock: buffer without room for a packet returned");
            return Some(0);
        }
        let header = self.muxer.next_packet(&mut self.payload[..room])?;
        let payload = &self.payload[..header.len as usize];
        // The room has been checked, so that this can't fail.
        let written = writer.write_all(&header.encode()).and_then(|()| writer.write_all(payload));
        debug_assert!(written.is_ok());
        Some((Header::SIZE + payload.len()) as u32)
    }
}

impl VhostUserBackendMut for Device {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        VIRTIO_F_VERSION_1 | VIRTIO_RING_F_EVENT_IDX | VHOST_USER_F_PROTOCOL_FEATURES
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ
    }

    fn reset_device(&mut self) {
        self.muxer.reset();
    }

    fn set_event_idx(&mut self, _enabled: bool) {
        // The framework tells the queues.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.guest_cid.to_le_bytes();
        let end = offset.saturating_add(size) as usize;
        config.get(offset as usize..end).map(<[u8]>::to_vec).unwrap_or_default()
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let (consumer, notifier) = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()?;
        self.exit.store(consumer.as_raw_fd(), Ordering::Relaxed);
        Some((consumer, notifier))
    }

    fn stop_vring(&mut self, _queue: u32) -> io::Result<()> {
        self.muxer.reset();
        Ok(())
    }

    fn handle_event(&mut self, _event: u16, _events: EventSet, vrings: &[Vring], _thread: usize) -> io::Result<()> {
        if let Err(e) = self.round(vrings) {
            // The rings lie outside of the guest's memory. An error returned here would end the worker for good,
            // but the guest may still set up its device anew.
            tracing::warn!(error = %e, "vsock: the guest's queues can't be used");
        }
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let exit = self.exit.load(Ordering::Relaxed);
        if exit >= 0 {
            let _ = nix::unistd::close(exit);
        }
    }
}

/// The next chain of a queue. Where there is none, the guest will notify us of the next one.
fn next_chain(
    vring: &mut VringState<Memory>,
    memory: &GuestMemoryLoadGuard<GuestMemoryMmap>,
) -> Result<Option<Chain>, virtio_queue::Error> {
    if let Some(chain) = vring.get_queue_mut().pop_descriptor_chain(memory.clone()) {
        return Ok(Some(chain));
    }
    // The second look closes the gap in which the guest added something and saw no need to notify. There is no
    // third: a broken ring may claim to hold more and yield nothing.
    if vring.enable_notification()? {
        return Ok(vring.get_queue_mut().pop_descriptor_chain(memory.clone()));
    }
    Ok(None)
}

/// The event that says that [`Device::host_fd`] is readable. The framework keeps the numbers up to the number of queues.
pub(crate) const HOST_EVENT: u64 = QUEUES as u64 + 1;

type Vring = VringMutex<Memory>;
type Chain = DescriptorChain<GuestMemoryLoadGuard<GuestMemoryMmap>>;

/// How a slice of the transmit queue ended.
enum Slice {
    /// All of the slice was used: there may be more.
    Used,
    /// The guest has to take resets first.
    Congested,
    Empty,
}

/// How filling receive buffers ended.
struct Filled {
    any: bool,
    more: bool,
}

/// Receive, transmit, event. QEMU itself answers for the last one.
const QUEUES: usize = 3;
const QUEUE_SIZE: usize = 256;
/// Packets that one direction may move before the other gets its turn.
const SLICE: usize = 64;

const VIRTIO_RING_F_EVENT_IDX: u64 = 1 << 29;
const VHOST_USER_F_PROTOCOL_FEATURES: u64 = 1 << 30;
const VIRTIO_F_VERSION_1: u64 = 1 << 32;

#[cfg(test)]
mod tests;
