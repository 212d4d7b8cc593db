//! The few requests to the kernel that connect an interface and a tap.

use std::io;
use std::time::Duration;

use futures::TryStreamExt as _;
use rtnetlink::packet_route::link::MacVtapMode;
use rtnetlink::packet_route::tc::TcHandle;
use rtnetlink::{Error as Refusal, Handle, LinkMacVtap, LinkMessageBuilder, LinkUnspec};

use crate::Error;

/// A connection to the kernel, in the namespace of the thread that opened it.
pub(crate) struct Netlink(Handle);

impl Netlink {
    pub(crate) fn open() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Netlink)?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.0
    }

    pub(crate) async fn index_of(&self, name: &str) -> Result<u32, Refusal> {
        let link = self.0.link().get().match_name(name).execute().try_next().await?;
        link.map(|link| link.header.index).ok_or(Refusal::RequestFailed)
    }

    pub(crate) async fn bring_up(&self, link: u32, mtu: u32) -> Result<(), Refusal> {
        // Which groups the guest has joined nobody knows but the guest, and IPv6 finds neighbours by groups.
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(link).mtu(mtu).allmulticast(true).up().build();
        self.0.link().set(message).execute().await
    }

    /// Adds a macvtap link that takes all that arrives at another link, and has its address.
    pub(crate) async fn add_macvtap(&self, name: &str, link: u32) -> Result<(), Refusal> {
        let message = LinkMacVtap::new(name, link, MacVtapMode::Passthrough).build();
        self.0.link().add(message).execute().await
    }

    /// Removes a link, if it is there.
    pub(crate) async fn remove_link(&self, link: u32) {
        if let Err(refusal) = self.0.link().del(link).execute().await {
            tracing::debug!(link, %refusal, "there is no link to remove");
        }
    }

    /// Adds the queueing discipline that sees what arrives.
    pub(crate) async fn add_ingress(&self, link: u32) -> Result<(), Refusal> {
        for attempt in 1..ATTEMPTS {
            match self.0.qdisc().add(link as i32).ingress().execute().await {
                // The kernel says so while an earlier one is being taken down, and has no event for its end.
                Err(Refusal::NetlinkError(message)) if message.to_io().kind() == io::ErrorKind::ResourceBusy => {
                    tokio::time::sleep(PAUSE * attempt).await;
                }
                outcome => return outcome,
            }
        }
        self.0.qdisc().add(link as i32).ingress().execute().await
    }

    /// Removes the discipline and all of its filters, if there is one.
    pub(crate) async fn remove_ingress(&self, link: u32) {
        let mut request = self.0.qdisc().del(link as i32);
        let header = &mut request.message_mut().header;
        (header.parent, header.handle) = (TcHandle::INGRESS, TcHandle::from(INGRESS));
        if let Err(refusal) = request.execute().await {
            tracing::debug!(link, %refusal, "there is no queueing discipline to remove");
        }
    }

    /// Sends all that arrives at one link out of the other.
    pub(crate) async fn redirect(&self, from: u32, to: u32) -> Result<(), Refusal> {
        let filter = self.0.traffic_filter(from as i32).add().parent(INGRESS).protocol(ALL_PROTOCOLS.to_be());
        filter.redirect(to)?.execute().await
    }
}

/// The handle of the ingress discipline, `ffff:`.
const INGRESS: u32 = 0xffff_0000;
/// `ETH_P_ALL`.
const ALL_PROTOCOLS: u16 = 0x0003;
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(10);
