//! Which tunnel a packet belongs to.

use super::{Tunnel, TunnelId};

/// All tunnels of a snapshot, found by slot or by outer addresses and key.
#[derive(Debug, Default)]
pub struct TunnelTable {
    tunnels: Vec<Option<Tunnel>>,
}

impl TunnelTable {
    /// A table of these tunnels. Slots that are not named stay empty.
    pub fn new(_tunnels: impl IntoIterator<Item = Tunnel>) -> Self {
        todo!()
    }

    /// The tunnel in a slot.
    pub fn get(&self, id: TunnelId) -> Option<&Tunnel> {
        self.tunnels.get(id.index())?.as_ref()
    }

    /// Every tunnel, by slot.
    pub fn iter(&self) -> impl Iterator<Item = &Tunnel> {
        self.tunnels.iter().flatten()
    }
}
