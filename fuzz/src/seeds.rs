//! What the fuzzer begins with: the captures of tests/golden, as each target reads them, and configurations.

use std::{fs, path::Path};

use super::{
    bed::Bed,
    event::{self, INTO, OUT, RAW, SHIM},
    judge::Ip,
};

/// Larger frames say nothing that smaller ones do not, and take longer.
const LARGEST: usize = 300;

/// The inputs of `target` to begin with; `root` is the project's directory.
pub fn of(target: &str, root: &Path) -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = match target {
        "config" => files(&root.join("fuzz/config")),
        _ => cases(&root.join("tests/golden"))
            .iter()
            .flat_map(|case| case.seeds(target))
            .collect(),
    };
    seeds.sort();
    seeds.dedup();
    seeds
}

/// The contents of every file in a directory, which need not be there.
pub fn files(dir: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
        .iter()
        .map(|path| fs::read(path).expect("a file"))
        .collect()
}

/// The frames of a classic little-endian pcap file.
fn frames(path: &Path) -> Vec<Vec<u8>> {
    let file = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut rest = &file[24..];
    let mut frames = Vec::new();
    while let Some((header, data)) = rest.split_first_chunk::<16>() {
        let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        frames.push(data[..len].to_vec());
        rest = &data[len..];
    }
    frames.retain(|frame| (34..LARGEST).contains(&frame.len()));
    frames
}

/// A case of the captures: both sides' frames, and the tunnel that is set up as the kernel's was.
struct Case {
    number: u8,
    outer: Vec<Vec<u8>>,
    inner: Vec<Vec<u8>>,
}

fn cases(dir: &Path) -> Vec<Case> {
    let mut cases = Vec::new();
    for entry in fs::read_dir(dir).expect("the captures").flatten() {
        let path = entry.path();
        let Some(name) = path
            .file_name()
            .and_then(|n| n.to_str()?.strip_suffix(".pcap"))
        else {
            continue;
        };
        if name.ends_with(".inner") {
            continue;
        }
        // What the kernel calls ip6tnl is two kinds to us.
        for name in [
            name.replace("ip6tnl", "ip6ip6"),
            name.replace("ip6tnl", "ipip6"),
        ] {
            cases.push(Case {
                number: Bed::get().number_of(&name).expect("a tunnel of that kind"),
                outer: frames(&path),
                inner: frames(&path.with_extension("inner.pcap")),
            });
        }
    }
    cases
}

impl Case {
    fn seeds(&self, target: &str) -> Vec<Vec<u8>> {
        match target {
            "decapsulate" => self.outer.iter().filter_map(|f| self.arriving(f)).collect(),
            "encapsulate" => {
                let inner = self.inner.iter();
                inner
                    .map(|f| [&[self.number, 127, 0], self.payload(f)].concat())
                    .collect()
            }
            "forward" => {
                let with = |event: Vec<u8>| [&[0][..], &event].concat();
                self.events().into_iter().map(with).collect()
            }
            _ => self.bursts(),
        }
    }

    /// What a tunnel of this case carries of an inner frame.
    fn payload<'f>(&self, frame: &'f [u8]) -> &'f [u8] {
        let tap = Bed::get().names[usize::from(self.number)].contains("tap");
        if tap { frame } else { &frame[14..] }
    }

    /// An outer packet as if the tunnel's far end had sent it, behind the choice of an expected number.
    fn arriving(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let tunnel = Bed::get().tunnel(self.number);
        let mut packet = frame[14..].to_vec();
        match (packet[0] >> 4, tunnel.remote, tunnel.local) {
            (4, std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) => {
                packet[12..16].copy_from_slice(&from.octets());
                packet[16..20].copy_from_slice(&to.octets());
                event::sum_up(&mut packet);
            }
            (6, std::net::IpAddr::V6(from), std::net::IpAddr::V6(to)) if packet.len() >= 40 => {
                packet[8..24].copy_from_slice(&from.octets());
                packet[24..40].copy_from_slice(&to.octets());
            }
            _ => return None,
        }
        Some([vec![0], packet].concat())
    }

    /// Every frame by every door that it could come by.
    fn events(&self) -> Vec<Vec<u8>> {
        let mut events = Vec::new();
        for frame in &self.outer {
            events.push([&[RAW, 0, 0], &frame[..]].concat());
            if let (Some(packet), 4 | 6) = (self.arriving(frame), frame[14] >> 4) {
                let ip = Ip::read(&packet[1..]);
                let shim = packet.get(1 + ip.header_len..).unwrap_or_default();
                events.push([&[SHIM, self.number, ip.tos], shim].concat());
            }
        }
        for frame in &self.inner {
            events.push([&[RAW | 1 << 4, 0, 0], &frame[..]].concat());
            events.push([&[INTO, self.number, 0], &frame[14..]].concat());
            events.push([&[OUT, self.number, 0], self.payload(frame)].concat());
        }
        events
    }

    /// The same one after the other, a few at a time, with turns between them.
    fn bursts(&self) -> Vec<Vec<u8>> {
        let burst = |events: &[Vec<u8>]| {
            let mut bytes = vec![0];
            for event in events {
                let len = (event.len() - 3).next_multiple_of(8);
                bytes.push(44 + (len / 8) as u8);
                bytes.extend(event);
                bytes.extend(vec![0; len - (event.len() - 3)]);
            }
            bytes.push(16);
            bytes
        };
        self.events().chunks(5).map(burst).collect()
    }
}
