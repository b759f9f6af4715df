//! The program that counts packets, and how long each that bears its time of sending was under way.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use super::{
    Insn, KTIME_GET_NS, MAP_LOOKUP, MD_DATA, MD_DATA_END, Program, XDP_DROP, bpf, entry, insn::*,
    map,
};

/// A bucket of the histogram holds 2^7 = 128 ns; the last one also everything beyond (33 ms).
const BUCKET_BITS: i32 = 7;
const BUCKETS: u32 = 1 << 18;

/// Counts every packet and lets it go no further.
pub struct Sink {
    pub program: Program,
    counters: OwnedFd,
    delays: OwnedFd,
}

impl Sink {
    /// With `stamp_at`, eight bytes there are when the packet was sent (`CLOCK_MONOTONIC`, nanoseconds).
    pub fn load(stamp_at: Option<usize>) -> io::Result<Self> {
        let counters = map(bpf::BPF_MAP_TYPE_ARRAY, 16, 1)?;
        let delays = map(bpf::BPF_MAP_TYPE_ARRAY, 8, BUCKETS)?;
        let mut code = vec![
            load32(6, 1, MD_DATA_END),
            load32(7, 1, MD_DATA),
            mov(8, 6),
            sub(8, 7),
        ];
        if let Some(at) = stamp_at {
            code.extend(delay(&delays, at as i32));
        }
        code.extend([store32_imm(10, -4, 0), mov(2, 10), add_imm(2, -4)]);
        code.extend(load_map(1, counters.as_raw_fd()));
        code.extend([
            call(MAP_LOOKUP),
            jump_zero(0, 3),
            mov_imm(1, 1),
            atomic_add64(0, 1, 0),
            atomic_add64(0, 8, 8),
            mov_imm(0, XDP_DROP),
            exit(),
        ]);
        Ok(Self {
            program: Program::load(&code)?,
            counters,
            delays,
        })
    }

    /// Packets and bytes so far.
    pub fn counts(&self) -> io::Result<(u64, u64)> {
        let [packets, bytes] = entry(&self.counters, 0)?;
        Ok((packets, bytes))
    }

    /// How long the packets were under way that bore their time: in nanoseconds the delay that each of `shares`
    /// (0 to 1) of them did not exceed, to the width of a bucket. Empty when there were none.
    pub fn delays(&self, shares: &[f64]) -> io::Result<Vec<u64>> {
        let buckets = (0..BUCKETS)
            .map(|i| Ok(entry::<1>(&self.delays, i)?[0]))
            .collect::<io::Result<Vec<u64>>>()?;
        let total: u64 = buckets.iter().sum();
        if total == 0 {
            return Ok(Vec::new());
        }
        Ok(shares
            .iter()
            .map(|share| quantile(&buckets, ((share * total as f64) as u64).min(total - 1)))
            .collect())
    }
}

/// The end of the bucket in which the packet numbered `rank` lies.
fn quantile(buckets: &[u64], rank: u64) -> u64 {
    let mut seen = 0;
    let bucket = buckets.iter().position(|n| {
        seen += n;
        seen > rank
    });
    (bucket.unwrap_or(buckets.len() - 1) as u64 + 1) << BUCKET_BITS
}

/// Puts one packet into the histogram: r6 is its end, r7 its beginning.
fn delay(delays: &OwnedFd, at: i32) -> Vec<Insn> {
    let mut found = vec![
        call(KTIME_GET_NS),
        sub(0, 9),
        shift_right(0, BUCKET_BITS),
        jump_at_most_imm(0, BUCKETS as i32 - 1, 1),
        mov_imm(0, BUCKETS as i32 - 1),
        store32(10, 0, -8),
        mov(2, 10),
        add_imm(2, -8),
    ];
    found.extend(load_map(1, delays.as_raw_fd()));
    found.extend([
        call(MAP_LOOKUP),
        jump_zero(0, 2),
        mov_imm(1, 1),
        atomic_add64(0, 1, 0),
    ]);
    let mut code = vec![
        mov(1, 7),
        add_imm(1, at + 8),
        jump_greater(1, 6, found.len() as i16 + 2),
    ];
    code.extend([load64(9, 7, at as i16), jump_zero(9, found.len() as i16)]);
    code.extend(found);
    code
}
