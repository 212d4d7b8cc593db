//! Neighbours that the host knows and the guest can't ask for, such as a gateway that answers no ARP.

use rtnetlink::packet_route::neighbour::NeighbourState;
use wire_ttrpc::types::ARPNeighbor;

use super::{Error, Network, hardware_address, interface_name, parse_ip};
use futures::TryStreamExt;

impl Network {
    /// Adds neighbours, each in the place of what was known about its address.
    pub(crate) async fn add_neighbors(&self, neighbors: &[ARPNeighbor]) -> Result<(), Error> {
        for neighbor in neighbors {
            let name = interface_name(&neighbor.device)?;
            let address = parse_ip("address of a neighbour", &neighbor.toIPAddress.get_or_default().address)?;
            let hardware = hardware_address(&neighbor.lladdr)?;
            let link = self.0.link().get().match_name(name).execute().try_next().await;
            let link = link.ok().flatten().ok_or_else(|| Error::NoLink(name.to_owned()))?;
            let state =
                u16::try_from(neighbor.state).map_err(|_| Error::Invalid("state", neighbor.state.to_string()))?;
            // Without a state the kernel would take it for one that it still has to ask for.
            let state = if state == 0 { NeighbourState::Permanent } else { NeighbourState::from(state) };
            let request = self.0.neighbours().add(link.header.index, address);
            request.state(state).link_layer_address(&hardware).replace().execute().await?;
        }
        Ok(())
    }
}
