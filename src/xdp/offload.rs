//! VLAN tags that a device takes out of the frame (`ethtool -K DEVICE rxvlan`), and how to leave them in.
//!
//! An XDP program does not see a tag that the hardware has put beside the frame: a tagged frame looks untagged,
//! and tenants of a trunk would be bridged together. On a device of ours the stripping is switched off.

use std::{
    io, mem,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::net::{AddressFamily, SocketType, socket};

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETH_SS_FEATURES: u32 = 4;
const SIOCETHTOOL: libc::Ioctl = 0x8946;
/// ETH_GSTRING_LEN in bytes and in words.
const NAME: usize = 32;
const NAME_WORDS: usize = NAME / 4;

/// 802.1Q and 802.1ad.
const STRIPPING: [&str; 2] = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];

/// A device that leaves VLAN tags in its frames as long as this value lives; then it does again what it did before.
#[derive(Debug)]
pub struct TagsInFrame {
    device: String,
    /// Features that were on, by their bit.
    was_on: Vec<usize>,
}

impl TagsInFrame {
    /// Whether VLAN tags may arrive beside the frames: the device takes them out, or it is one whose peer never put them in.
    pub fn stripped_by(device: &str) -> io::Result<bool> {
        Ok(tags_beside_frame(device)? || !Features::of(device)?.stripping_on().is_empty())
    }

    /// Sees to it that tags stay in the frames. Errors where that is not in the device's hands; then nothing is changed.
    /// Some drivers reset the link.
    pub fn keep(device: &str) -> io::Result<TagsInFrame> {
        if tags_beside_frame(device)? {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!(
                    "it is the peer of {device} that keeps VLAN tags beside its frames (txvlan)"
                ),
            ));
        }
        TagsInFrame::switch_off(device)
    }

    /// Switches the device's own stripping off, which is enough for hardware: [`keep`](Self::keep) asks for that first.
    pub fn switch_off(device: &str) -> io::Result<TagsInFrame> {
        let features = Features::of(device)?;
        let was_on = features.stripping_on();
        features.set(device, &was_on, false)?;
        let kept = TagsInFrame {
            device: device.to_owned(),
            was_on,
        };
        match Features::of(device)?.stripping_on().is_empty() {
            true => Ok(kept),
            false => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("{device} cannot leave VLAN tags in its frames (rxvlan is fixed)"),
            )),
        }
    }
}

impl TagsInFrame {
    /// The device, and the features to switch on again: for another process that is to do it.
    pub fn to_parts(&self) -> (String, Vec<usize>) {
        (self.device.clone(), self.was_on.clone())
    }

    /// What another process has switched off, and left to this one.
    pub fn from_parts((device, was_on): (String, Vec<usize>)) -> Self {
        Self { device, was_on }
    }

    /// Leaves them as they are.
    pub fn leave(mut self) {
        self.was_on.clear();
    }
}

impl Drop for TagsInFrame {
    fn drop(&mut self) {
        if self.was_on.is_empty() {
            return;
        }
        let restored = Features::of(&self.device)
            .and_then(|features| features.set(&self.device, &self.was_on, true));
        if let Err(error) = restored {
            tracing::warn!("{}: cannot switch rxvlan on again: {error}", self.device);
        }
    }
}

/// Whether this is a software device that passes on frames just as its peer has them, tags beside them and all.
fn tags_beside_frame(device: &str) -> io::Result<bool> {
    // struct ethtool_drvinfo: cmd, then the driver's name and more.
    let mut info = [0; 49];
    info[0] = ETHTOOL_GDRVINFO;
    match ethtool(device, &mut info) {
        // A driver without a name is neither.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(false),
        told => told?,
    }
    Ok(["veth", "netkit"].contains(&name(&info[1..1 + NAME_WORDS]).as_str()))
}

/// A device's offload features: their names by bit, and the bits that are on.
struct Features {
    names: Vec<String>,
    active: Vec<bool>,
}

impl Features {
    fn of(device: &str) -> io::Result<Features> {
        // struct ethtool_sset_info: cmd, reserved, mask (64 bits), then one count per set asked for.
        let mut info = [ETHTOOL_GSSET_INFO, 0, 0, 0, 0];
        let mask = (1u64 << ETH_SS_FEATURES).to_ne_bytes();
        for (word, bytes) in info[2..4].iter_mut().zip(mask.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        ethtool(device, &mut info)?;
        let count = info[4] as usize;

        // struct ethtool_gstrings: cmd, set, count, then the names.
        let mut strings = vec![0; 3 + count * NAME_WORDS];
        strings[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32]);
        ethtool(device, &mut strings)?;
        let names = strings[3..].chunks_exact(NAME_WORDS).map(name).collect();

        // struct ethtool_gfeatures: cmd, blocks, then per 32 features: available, requested, active, never changed.
        let blocks = count.div_ceil(32);
        let mut state = vec![0; 2 + blocks * 4];
        state[..2].copy_from_slice(&[ETHTOOL_GFEATURES, blocks as u32]);
        ethtool(device, &mut state)?;
        let active = |bit: usize| state[2 + bit / 32 * 4 + 2] >> (bit % 32) & 1 == 1;
        Ok(Features {
            names,
            active: (0..count).map(active).collect(),
        })
    }

    fn stripping_on(&self) -> Vec<usize> {
        let strips = |bit: &usize| STRIPPING.contains(&self.names[*bit].as_str());
        let on = |bit: &usize| self.active[*bit];
        (0..self.names.len()).filter(strips).filter(on).collect()
    }

    fn set(&self, device: &str, bits: &[usize], on: bool) -> io::Result<()> {
        if bits.is_empty() {
            return Ok(());
        }
        // struct ethtool_sfeatures: cmd, blocks, then per 32 features: those meant, and their wanted state.
        let blocks = self.names.len().div_ceil(32);
        let mut request = vec![0; 2 + blocks * 2];
        request[..2].copy_from_slice(&[ETHTOOL_SFEATURES, blocks as u32]);
        for bit in bits {
            let block = 2 + bit / 32 * 2;
            request[block] |= 1 << (bit % 32);
            request[block + 1] |= u32::from(on) << (bit % 32);
        }
        ethtool(device, &mut request)
    }
}

/// A NUL-terminated name in a row of words.
fn name(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(NAME);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// One SIOCETHTOOL request; `data` is the command's structure, large enough for the answer.
fn ethtool(device: &str, data: &mut [u32]) -> io::Result<()> {
    let socket: OwnedFd = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if device.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = data.as_mut_ptr().cast();
    // SAFETY: the kernel reads and writes `data` within the length that the caller put into the command's
    // structure; `request` and `data` outlive the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
