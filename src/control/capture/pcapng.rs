//! Captured packets as pcapng (draft-ietf-opsawg-pcapng): what was received, what became of it, and what left.
//!
//! Each packet is a block on the interface that it came by and, where it was sent, a second one on the interface that it left
//! by. Both have one comment: `tunnel=gre1 direction=out worker=0 verdict=transmit`.

use std::{borrow::Cow, collections::HashMap, io, io::Write, time::Duration};

use pcap_file::{
    DataLink, PcapError,
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
            interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption},
        },
    },
};

use super::Names;
use crate::{
    datapath::{
        Verdict,
        capture::{Copied, Shot},
    },
    fib::PortId,
};

/// Timestamps are in nanoseconds (10 to the power of -9).
const NANOSECONDS: u8 = 9;
/// `epb_flags`: the direction of a packet.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// A capture file that is being written.
pub(super) struct Writer<W: Write> {
    file: PcapNgWriter<W>,
    snaplen: u32,
    interfaces: HashMap<String, u32>,
    packets: u64,
    /// As it was last written.
    shed: u64,
}

/// What cannot be written is the stream's fault: the blocks are ours.
fn broken(why: PcapError) -> io::Error {
    match why {
        PcapError::IoError(why) => why,
        why => io::Error::other(why),
    }
}

impl<W: Write> Writer<W> {
    pub fn new(stream: W, snaplen: u32) -> io::Result<Self> {
        Ok(Self {
            file: PcapNgWriter::new(stream).map_err(broken)?,
            snaplen,
            interfaces: HashMap::new(),
            packets: 0,
            shed: 0,
        })
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.file.get_mut().flush()
    }

    /// One packet; `shed` more were wanted so far and not copied.
    pub fn packet(&mut self, shot: &Shot, names: &Names, shed: u64) -> io::Result<()> {
        let comment = comment(shot, names);
        let at = Duration::from_nanos(shot.at);
        let interface = match shot.from {
            Some(port) => self.interface(&port_name(names, port), DataLink::ETHERNET)?,
            None => self.interface("handed over", DataLink::RAW)?,
        };
        let lost = shed - self.shed;
        self.shed = shed;
        self.block((interface, INBOUND), at, &shot.before, &comment, lost)?;
        if let Verdict::Transmit(port) = shot.verdict {
            let interface = self.interface(&port_name(names, port), DataLink::ETHERNET)?;
            self.block((interface, OUTBOUND), at, &shot.after, &comment, 0)?;
        }
        self.packets += 1;
        Ok(())
    }

    fn block(
        &mut self,
        (interface_id, direction): (u32, u32),
        timestamp: Duration,
        frame: &Copied,
        comment: &str,
        lost: u64,
    ) -> io::Result<()> {
        let mut options = vec![
            EnhancedPacketOption::Comment(Cow::Borrowed(comment)),
            EnhancedPacketOption::Flags(direction),
        ];
        if lost > 0 {
            options.push(EnhancedPacketOption::DropCount(lost));
        }
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp,
            original_len: frame.len as u32,
            data: Cow::Borrowed(frame.bytes()),
            options,
        };
        let written = self.file.write_pcapng_block(block);
        written.map(drop).map_err(broken)
    }

    /// The number of a named interface, described where it is new.
    fn interface(&mut self, name: &str, link: DataLink) -> io::Result<u32> {
        if let Some(number) = self.interfaces.get(name) {
            return Ok(*number);
        }
        let mut block = InterfaceDescriptionBlock::new(link, self.snaplen);
        block.options = vec![
            InterfaceDescriptionOption::IfName(Cow::Owned(name.to_owned())),
            InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
        ];
        self.file.write_pcapng_block(block).map_err(broken)?;
        let number = self.interfaces.len() as u32;
        self.interfaces.insert(name.to_owned(), number);
        Ok(number)
    }

    /// The closing statistics: packets written, and packets shed.
    pub fn end(mut self, now: u64, shed: u64) -> io::Result<()> {
        if !self.interfaces.is_empty() {
            let block = InterfaceStatisticsBlock {
                interface_id: 0,
                timestamp: now,
                options: vec![
                    InterfaceStatisticsOption::IsbIfRecv(self.packets + shed),
                    InterfaceStatisticsOption::IsbIfDrop(shed),
                ],
            };
            self.file.write_pcapng_block(block).map_err(broken)?;
        }
        self.flush()
    }
}

fn port_name<'n>(names: &'n Names, port: PortId) -> Cow<'n, str> {
    match names.ports.get(port.index()) {
        Some(name) => Cow::Borrowed(name),
        None => Cow::Owned(format!("port {}", port.index())),
    }
}

fn comment(shot: &Shot, names: &Names) -> String {
    let mut words = String::new();
    let ways = [(shot.trail.out_of, "in"), (shot.trail.into, "out")];
    for (id, direction) in ways {
        let Some(id) = id else { continue };
        let name = names.tunnels.get(&id).map_or("?", |name| name);
        words.push_str(&format!("tunnel={name} direction={direction} "));
    }
    words.push_str(&format!("worker={} ", shot.worker));
    words.push_str(&match shot.verdict {
        Verdict::Transmit(_) => "verdict=transmit".to_owned(),
        Verdict::Punt(reason, _) => format!("verdict=punt reason={}", reason.as_str()),
        Verdict::Drop(reason) => format!("verdict=drop reason={}", reason.as_str()),
    });
    words
}
