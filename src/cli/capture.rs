//! `greyhound capture`: packets of the fast path into a file, into a pipe, or as lines.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{IpAddr, Shutdown},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use clap::{Args, ValueEnum};
use pcap_file::pcapng::{
    Block, PcapNgParser,
    blocks::{
        enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
        interface_description::InterfaceDescriptionOption,
        interface_statistics::InterfaceStatisticsOption,
    },
};

use crate::{
    control::{
        capture::{SNAPLEN, Wanted},
        config::DEFAULT_CONTROL,
        socket::{Client, Request},
    },
    datapath::filter::Instruction,
    packet::{EtherType, Ethernet, protocol},
};

/// The longest block that the router writes, in bytes, and more.
const BLOCK_LIMIT: usize = 64 * 1024;

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Only packets of this tunnel
    #[arg(long, value_name = "NAME")]
    tunnel: Option<String>,
    /// in: what comes out of a tunnel; out: what goes into one; inout
    #[arg(
        short = 'Q',
        long,
        value_enum,
        value_name = "DIRECTION",
        hide_possible_values = true
    )]
    direction: Option<Direction>,
    /// Only packets that were dropped, for this reason or for any
    #[arg(long, value_name = "REASON", num_args = 0..=1, require_equals = true, default_missing_value = "any")]
    drop: Option<String>,
    /// End after so many packets
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Write pcapng into a file, or to standard output: -
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Bytes kept of each packet
    #[arg(short, long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=i64::from(SNAPLEN)))]
    snaplen: Option<u32>,
    /// One packet of so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    sample: Option<u32>,
    /// The running router's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL)]
    socket: PathBuf,
    /// A filter in tcpdump's words; the packet as it came or as it left has to match
    filter: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Direction {
    In,
    Out,
    Inout,
}

/// Captures until enough packets came, the router ends, or the user interrupts.
pub fn capture(options: &Options) -> anyhow::Result<()> {
    let wanted = Wanted {
        tunnel: options.tunnel.clone(),
        direction: match options.direction {
            Some(Direction::In) => Some("in".to_owned()),
            Some(Direction::Out) => Some("out".to_owned()),
            Some(Direction::Inout) | None => None,
        },
        drop: options.drop.clone(),
        filter: compile(&options.filter.join(" "))?,
        snaplen: options.snaplen,
        sample: options.sample,
        count: options.count,
    };
    let mut sink = match &options.write {
        Some(path) if path != Path::new("-") => Sink::File(
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?,
        ),
        Some(_) => Sink::Pipe(io::stdout()),
        None => Sink::Lines(io::stdout()),
    };
    let mut client = Client::connect(&options.socket)?;
    let () = client.ask(&Request::Capture(wanted))?;
    let mut stream = client.into_stream()?;
    end_at_signal(stream.get_ref().try_clone()?)?;
    let mut summary = Summary::default();
    let mut parser = None;
    let done = loop {
        let Some(block) = next_block(&mut stream)? else {
            break Ok(());
        };
        let read = parse(&mut parser, &block);
        summary.note(read.as_ref());
        if let Err(why) = sink.take(&block, read.as_ref(), parser.as_ref()) {
            break Err(why);
        }
    };
    match done {
        // The reader of the pipe has seen enough.
        Err(why) if why.kind() == io::ErrorKind::BrokenPipe => {}
        done => done.context("cannot write the capture")?,
    }
    let lost = match summary.shed {
        0 => String::new(),
        shed => format!(
            ", {shed} more were not copied: they came too fast (see --sample, --snaplen and filters)"
        ),
    };
    let s = if summary.packets == 1 { "" } else { "s" };
    eprintln!("{} packet{s} captured{lost}", summary.packets);
    Ok(())
}

/// Compiles a filter as tcpdump does: by tcpdump.
fn compile(expression: &str) -> anyhow::Result<Vec<Instruction>> {
    if expression.trim().is_empty() {
        return Ok(Vec::new());
    }
    let tcpdump = Command::new("tcpdump")
        .args(["-y", "EN10MB", "-ddd", "--", expression])
        .output();
    let output = match tcpdump {
        Ok(output) => output,
        Err(why) if why.kind() == io::ErrorKind::NotFound => {
            bail!(
                "a filter is compiled by tcpdump, and there is none here: install tcpdump, or capture without a filter"
            )
        }
        Err(why) => return Err(anyhow!("cannot run tcpdump: {why}")),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or("refused");
        bail!(
            "filter {expression:?}: {}",
            last.trim_start_matches("tcpdump: ")
        );
    }
    let listing = String::from_utf8_lossy(&output.stdout);
    let instructions = listing.lines().skip(1).map(|line| {
        let mut numbers = line.split_whitespace();
        let mut next = || numbers.next()?.parse::<u32>().ok();
        let (code, yes, no, k) = (next()?, next()?, next()?, next()?);
        Some((
            code.try_into().ok()?,
            yes.try_into().ok()?,
            no.try_into().ok()?,
            k,
        ))
    });
    let program: Option<Vec<Instruction>> = instructions.collect();
    program.ok_or_else(|| anyhow!("tcpdump -ddd printed what is no filter: {listing}"))
}

/// At SIGINT or SIGTERM the router is told that it is enough; it closes the file and the connection.
fn end_at_signal(stream: UnixStream) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        let _ = stream.shutdown(Shutdown::Write);
    });
    Ok(())
}

/// The next block as it came; none at the end. Blocks are in this machine's byte order: the router runs on it.
fn next_block(stream: &mut impl Read) -> anyhow::Result<Option<Vec<u8>>> {
    let mut block = vec![0; 8];
    match stream.read_exact(&mut block) {
        Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let len = u32::from_ne_bytes([block[4], block[5], block[6], block[7]]) as usize;
    if !(12..=BLOCK_LIMIT).contains(&len) {
        bail!("the router sent a block of {len} bytes: not a capture of this version");
    }
    block.resize(len, 0);
    stream.read_exact(&mut block[8..])?;
    Ok(Some(block))
}

/// Where blocks go.
enum Sink {
    File(File),
    Pipe(io::Stdout),
    Lines(io::Stdout),
}

impl Sink {
    /// A block as it came, and as it was read.
    fn take(
        &mut self,
        block: &[u8],
        read: Option<&Block<'_>>,
        parser: Option<&PcapNgParser>,
    ) -> io::Result<()> {
        match (self, read) {
            (Sink::File(file), _) => file.write_all(block),
            (Sink::Pipe(pipe), _) => pipe.write_all(block).and_then(|()| pipe.flush()),
            (Sink::Lines(out), Some(Block::EnhancedPacket(packet))) => {
                writeln!(out, "{}", line(packet, &name_of(parser, packet)))
            }
            (Sink::Lines(_), _) => Ok(()),
        }
    }
}

/// Reads a block; the first one of a file makes the parser.
fn parse<'b>(parser: &mut Option<PcapNgParser>, block: &'b [u8]) -> Option<Block<'b>> {
    match parser {
        Some(parser) => parser.next_block(block).ok().map(|(_, block)| block),
        None => {
            *parser = PcapNgParser::new(block).ok().map(|(_, parser)| parser);
            None
        }
    }
}

fn name_of(parser: Option<&PcapNgParser>, packet: &EnhancedPacketBlock<'_>) -> String {
    let interface = parser.and_then(|parser| parser.packet_interface(packet));
    let options = interface.iter().flat_map(|interface| &interface.options);
    let mut names = options.filter_map(|option| match option {
        InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
        _ => None,
    });
    names.next().unwrap_or_default()
}

#[derive(Default)]
struct Summary {
    packets: u64,
    shed: u64,
}

impl Summary {
    /// A packet that was forwarded has two blocks; the one on its way in counts.
    fn note(&mut self, block: Option<&Block<'_>>) {
        match block {
            Some(Block::EnhancedPacket(packet)) => {
                let inbound = EnhancedPacketOption::Flags(1);
                self.packets += u64::from(packet.options.contains(&inbound));
            }
            Some(Block::InterfaceStatistics(statistics)) => {
                for option in &statistics.options {
                    if let InterfaceStatisticsOption::IsbIfDrop(shed) = option {
                        self.shed = *shed;
                    }
                }
            }
            _ => {}
        }
    }
}

/// One packet in one line: when (UTC), where, what, and its fate.
fn line(packet: &EnhancedPacketBlock<'_>, interface: &str) -> String {
    let mut way = "";
    let mut fate = "";
    for option in &packet.options {
        match option {
            EnhancedPacketOption::Flags(1) => way = "in",
            EnhancedPacketOption::Flags(_) => way = "out",
            EnhancedPacketOption::Comment(comment) => fate = comment,
            _ => {}
        }
    }
    let what = match interface {
        "handed over" => ip(&packet.data),
        _ => frame(&packet.data),
    };
    let what = what.unwrap_or_else(|| "cut off".to_owned());
    let clock = clock(packet.timestamp);
    format!(
        "{clock} {interface} {way} {what}, length {} [{fate}]",
        packet.original_len
    )
}

fn clock(since_1970: Duration) -> String {
    let day = since_1970.as_secs() % 86_400;
    let (hours, minutes, seconds) = (day / 3600, day / 60 % 60, day % 60);
    format!(
        "{hours:02}:{minutes:02}:{seconds:02}.{:06}",
        since_1970.subsec_micros()
    )
}

fn frame(bytes: &[u8]) -> Option<String> {
    let frame = Ethernet::parse(bytes).ok()?;
    match frame.ether_type() {
        EtherType::IPV4 | EtherType::IPV6 => ip(frame.payload()),
        other => Some(format!("ethertype {:#06x}", other.0)),
    }
}

fn ip(packet: &[u8]) -> Option<String> {
    // By hand, because it may be cut: the room's parsers want packets that are whole.
    let first = *packet.first()?;
    let v6 = |at: usize| {
        <[u8; 16]>::try_from(packet.get(at..at + 16)?)
            .ok()
            .map(IpAddr::from)
    };
    let v4 = |at: usize| {
        <[u8; 4]>::try_from(packet.get(at..at + 4)?)
            .ok()
            .map(IpAddr::from)
    };
    let (source, destination, next, header_len) = match first >> 4 {
        6 => (v6(8)?, v6(24)?, *packet.get(6)?, 40),
        _ => (
            v4(12)?,
            v4(16)?,
            *packet.get(9)?,
            usize::from(first & 0x0f) * 4,
        ),
    };
    let payload = packet.get(header_len..).unwrap_or_default();
    let port = |at: usize| {
        payload
            .get(at..at + 2)
            .map(|b| u16::from_be_bytes([b[0], b[1]]))
    };
    let name = match next {
        protocol::ICMP => "ICMP",
        protocol::TCP => "TCP",
        protocol::UDP => "UDP",
        protocol::GRE => "GRE",
        protocol::IPIP => "IPIP",
        protocol::IPV6 => "IPv6",
        protocol::ICMPV6 => "ICMP6",
        _ => return Some(format!("{source} > {destination}: protocol {next}")),
    };
    let ports = match next {
        protocol::TCP | protocol::UDP => port(0).zip(port(2)),
        _ => None,
    };
    Some(match ports {
        Some((from, to)) => format!("{source}.{from} > {destination}.{to}: {name}"),
        None => format!("{source} > {destination}: {name}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;

    fn packet(data: Vec<u8>) -> EnhancedPacketBlock<'static> {
        EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::from_micros(86_400_000_000 + 3_723_000_045),
            original_len: data.len() as u32,
            data: Cow::Owned(data),
            options: vec![
                EnhancedPacketOption::Flags(2),
                EnhancedPacketOption::Comment(
                    "tunnel=gre1 direction=out worker=0 verdict=transmit".into(),
                ),
            ],
        }
    }

    #[test]
    fn a_packet_is_one_line() {
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(
            [10, 1, 0, 2],
            [10, 2, 0, 2],
            64,
        );
        let mut udp = Vec::new();
        builder.udp(1024, 53).write(&mut udp, b"hello").unwrap();
        let fate = "[tunnel=gre1 direction=out worker=0 verdict=transmit]";
        assert_eq!(
            line(&packet(udp.clone()), "eth1"),
            format!("01:02:03.000045 eth1 out 10.1.0.2.1024 > 10.2.0.2.53: UDP, length 47 {fate}")
        );
        assert_eq!(
            line(&packet(udp[..20].to_vec()), "eth1"),
            format!("01:02:03.000045 eth1 out cut off, length 20 {fate}")
        );
        assert_eq!(
            line(&packet(udp[14..].to_vec()), "handed over"),
            format!(
                "01:02:03.000045 handed over out 10.1.0.2.1024 > 10.2.0.2.53: UDP, length 33 {fate}"
            )
        );
        let arp = [&[0xff; 12][..], &[0x08, 0x06, 0, 1]].concat();
        assert_eq!(
            line(&packet(arp), "eth1"),
            format!("01:02:03.000045 eth1 out ethertype 0x0806, length 16 {fate}")
        );
    }

    #[test]
    fn what_is_no_block_is_refused() {
        assert!(next_block(&mut &b""[..]).unwrap().is_none());
        assert!(next_block(&mut &[1, 0, 0, 0, 4, 0, 0, 0][..]).is_err());
        assert!(next_block(&mut &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff][..]).is_err());
        assert!(next_block(&mut &[1, 0, 0, 0, 16, 0, 0, 0, 1][..]).is_err());
    }
}
