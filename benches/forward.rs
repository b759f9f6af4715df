//! The packet path in memory, without a kernel: what a packet costs in `forward()` alone, and in a worker's whole turn, from
//! receive ring to transmit ring.
//!
//! ```text
//! cargo bench --bench forward [-- WORD…]        nanoseconds and clocks; only cases that have all these words
//! scripts/instructions.py [--renew]             instructions, against benches/instructions.json
//! ```
//!
//! Packets arrive 256 at a time; what is timed is the router's work on them alone. The middle and the best of many rounds
//! are shown. Clocks are the time stamp counter's.

mod bed;

use std::{fs, time::Instant};

use bed::{ARRIVING, Bed, Case, Way};

const ROUNDS: usize = 60;
/// Packets of a round.
const PACKETS: usize = 128 * ARRIVING;

fn case(way: Way, (tunnels, routes, flows): (usize, usize, usize), bytes: usize) -> Case {
    Case {
        way,
        tunnels,
        routes,
        flows,
        bytes,
    }
}

/// Every combination that says something of its own.
fn cases() -> Vec<Case> {
    const SCALES: [(usize, usize, usize); 9] = [
        (1, 1, 1),
        (1, 1, 256),
        (1_000, 1, 1),
        (10_000, 1, 1),
        (1, 100_000, 1),
        (1, 1_000_000, 1),
        (1, 1, 1_000_000),
        (1_000, 100_000, 1_000_000),
        (10_000, 100_000, 1_000_000),
    ];
    let ways = [Way::Encapsulate, Way::Decapsulate, Way::Across];
    let small = ways
        .iter()
        .flat_map(|way| SCALES.map(|scale| case(*way, scale, 64)));
    let large = ways.iter().map(|way| case(*way, (1, 1, 256), 1400));
    let most = ways
        .iter()
        .map(|way| case(*way, (10_000, 1_000_000, 1_000_000), 64));
    small.chain(large).chain(most).collect()
}

fn words(case: &Case) -> String {
    let way = match case.way {
        Way::Encapsulate => "encapsulate",
        Way::Decapsulate => "decapsulate",
        Way::Across => "across",
    };
    format!(
        "{way:<12}{:>8}{:>10}{:>10}{:>7}",
        case.tunnels, case.routes, case.flows, case.bytes
    )
}

/// Runs `work` on packets that `prepare` made until a round is full: nanoseconds per packet.
fn round(bed: &mut Bed, prepare: fn(&mut Bed), work: fn(&mut Bed), clear: fn(&mut Bed)) -> f64 {
    let mut nanos = 0;
    for _ in 0..PACKETS / ARRIVING {
        bed.arrive();
        prepare(bed);
        let start = Instant::now();
        work(bed);
        nanos += start.elapsed().as_nanos();
        clear(bed);
    }
    nanos as f64 / PACKETS as f64
}

/// The middle and the best of many rounds.
fn rounds(mut round: impl FnMut() -> f64) -> (f64, f64) {
    let mut all: Vec<f64> = (0..ROUNDS).map(|_| round()).collect();
    all.sort_by(f64::total_cmp);
    (all[ROUNDS / 2], all[0])
}

/// Clocks of the time stamp counter in a nanosecond: half of what the kernel calls BogoMIPS, where it knows the frequency.
fn clocks() -> f64 {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("bogomips"));
    let mips = line.and_then(|line| line.split(':').nth(1)?.trim().parse::<f64>().ok());
    mips.unwrap_or(f64::NAN) / 2000.0
}

fn measure(wanted: &[String]) {
    let clocks = clocks();
    println!(
        "{:<12}{:>8}{:>10}{:>10}{:>7}  {:>27}  {:>27}",
        "",
        "tunnels",
        "routes",
        "flows",
        "bytes",
        "forward: ns   best  clocks",
        "turn: ns   best  clocks"
    );
    for case in cases() {
        let words = words(&case);
        let has = |word: &String| words.split_whitespace().any(|w| w == word);
        if !wanted.iter().all(has) {
            continue;
        }
        let mut bed = Bed::new(case);
        let alone = rounds(|| round(&mut bed, Bed::receive, Bed::forward, Bed::recycle));
        let turn = rounds(|| round(&mut bed, |_| (), Bed::turns, Bed::leave));
        let shown = |(middle, best): (f64, f64)| {
            format!("{middle:>11.1}{best:>7.1}{:>8.0}", middle * clocks)
        };
        println!("{words}  {:>27}  {:>27}", shown(alone), shown(turn));
    }
}

/// Whose instructions are counted, by name: those that change with the packets and the code, not with what a cache holds.
fn counted() -> [(&'static str, Case); 8] {
    let (one, some, many) = ((1, 1, 1), (1, 1, 256), (1_000, 100_000, 65_536));
    [
        ("encapsulate", case(Way::Encapsulate, one, 64)),
        ("encapsulate-256-flows", case(Way::Encapsulate, some, 64)),
        ("encapsulate-1400-bytes", case(Way::Encapsulate, one, 1400)),
        ("encapsulate-many", case(Way::Encapsulate, many, 64)),
        ("decapsulate", case(Way::Decapsulate, one, 64)),
        ("decapsulate-1400-bytes", case(Way::Decapsulate, one, 1400)),
        ("decapsulate-many", case(Way::Decapsulate, many, 64)),
        ("across", case(Way::Across, one, 64)),
    ]
}

/// Sends so many packets through [`Bed::turns`], for a counter of its instructions.
fn count(name: &str, packets: usize) {
    let case = counted().into_iter().find(|(known, _)| *known == name);
    let (_, case) = case.expect("the name of a case");
    let mut bed = Bed::new(case);
    for _ in 0..packets / ARRIVING {
        bed.arrive();
        bed.turns();
        bed.leave();
    }
}

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    match &args[..] {
        [word] if word == "--counted" => counted().iter().for_each(|(name, _)| println!("{name}")),
        [word, name, packets] if word == "--count" => {
            count(name, packets.parse().expect("packets"))
        }
        _ => measure(&args),
    }
}
