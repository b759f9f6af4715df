//! The program that makes packets: `BPF_PROG_RUN` lets the kernel run it on live frames.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use super::{
    GET_PRANDOM, Insn, KTIME_GET_NS, MAP_LOOKUP, MD_DATA, MD_DATA_END, Program, REDIRECT,
    XDP_ADJUST_TAIL, XDP_DROP, bpf, entry, insn::*, map,
};

/// How far behind its schedule a paced source may run before it gives up the arrears, in nanoseconds: what it
/// missed while the kernel had other things to do would come as a burst.
const ARREARS_NS: i32 = 20_000;

/// One kind of packet: its headers, the length of the whole frame, and how often it is chosen.
pub struct Shape {
    pub header: Vec<u8>,
    pub len: usize,
    pub weight: i32,
}

/// What the program sends.
pub struct Pattern {
    /// The longest comes first: the frames that the program runs on have its length.
    pub shapes: Vec<Shape>,
    /// Flows differ in the 16 bits at this offset: 1024 and up.
    pub port_at: usize,
    pub flows: u16,
    /// The device to send out of.
    pub ifindex: u32,
    /// One packet every so many nanoseconds; without it, one at each run.
    pub interval_ns: Option<u32>,
    /// Where the time of sending goes: eight bytes, `CLOCK_MONOTONIC` in nanoseconds, in the machine's order.
    pub stamp_at: Option<usize>,
}

pub struct Generator {
    pub program: Program,
    /// When the next packet is due, and how many were sent.
    schedule: OwnedFd,
}

impl Generator {
    pub fn load(pattern: &Pattern) -> io::Result<Self> {
        let schedule = map(bpf::BPF_MAP_TYPE_ARRAY, 16, 1)?;
        let mut code = vec![mov(6, 1)];
        if let Some(interval) = pattern.interval_ns {
            code.extend(pace(&schedule, interval));
        }
        let total: i32 = pattern.shapes.iter().map(|shape| shape.weight).sum();
        let longest = pattern.shapes[0].len;
        if pattern.shapes.len() > 1 {
            code.extend([call(GET_PRANDOM), modulo_imm(0, total), mov32(9, 0)]);
        }
        let mut up_to = 0;
        for shape in &pattern.shapes {
            up_to += shape.weight;
            let send = pattern.send(shape, shape.len as i32 - longest as i32);
            if up_to < total {
                code.push(jump_at_least_imm(9, up_to, send.len() as i16));
            }
            code.extend(send);
        }
        Ok(Self {
            program: Program::load(&code)?,
            schedule,
        })
    }

    /// Packets that a paced program has sent.
    pub fn sent(&self) -> io::Result<u64> {
        Ok(entry::<2>(&self.schedule, 0)?[1])
    }
}

/// Drops the frame unless the next packet is due.
fn pace(schedule: &OwnedFd, interval_ns: u32) -> Vec<Insn> {
    let mut code = vec![store32_imm(10, -4, 0), mov(2, 10), add_imm(2, -4)];
    code.extend(load_map(1, schedule.as_raw_fd()));
    code.extend([call(MAP_LOOKUP), jump_nonzero(0, 2)]);
    code.extend(DROP);
    code.extend([
        mov(9, 0),
        call(KTIME_GET_NS),
        load64(1, 9, 0),
        // Due when the clock has reached it.
        mov(2, 0),
        add_imm(2, 1),
        jump_greater(2, 1, 2),
    ]);
    code.extend(DROP);
    code.extend([
        mov(2, 1),
        add_imm(2, ARREARS_NS),
        jump_greater(2, 0, 1),
        mov(1, 0),
        add_imm(1, interval_ns as i32),
        store64(9, 1, 0),
        mov_imm(1, 1),
        atomic_add64(9, 1, 8),
    ]);
    code
}

const DROP: [Insn; 2] = [mov_imm(0, XDP_DROP), exit()];

impl Pattern {
    /// Writes the headers anew into the frame (a live frame comes back as its last receiver left it), shortened
    /// by `-longer` bytes, and sends it.
    fn send(&self, shape: &Shape, longer: i32) -> Vec<Insn> {
        let mut code = Vec::new();
        if longer != 0 {
            code.extend([
                mov(1, 6),
                mov_imm(2, longer),
                call(XDP_ADJUST_TAIL),
                jump_zero(0, 2),
            ]);
            code.extend(DROP);
        }
        code.extend([
            load32(7, 6, MD_DATA),
            load32(8, 6, MD_DATA_END),
            mov(1, 7),
            add_imm(1, shape.len as i32),
        ]);
        let mut body = write(&shape.header);
        if self.flows > 1 {
            body.extend([
                call(GET_PRANDOM),
                modulo_imm(0, i32::from(self.flows)),
                add_imm(0, 1024),
                to_be16(0),
                store16(7, 0, self.port_at as i16),
            ]);
        }
        if let Some(at) = self.stamp_at {
            body.extend([call(KTIME_GET_NS), store64(7, 0, at as i16)]);
        }
        body.extend([
            mov_imm(1, self.ifindex as i32),
            mov_imm(2, 0),
            call(REDIRECT),
            exit(),
        ]);
        code.push(jump_greater(1, 8, body.len() as i16));
        code.extend(body);
        code.extend(DROP);
        code
    }
}

/// Stores bytes from r7 on.
fn write(bytes: &[u8]) -> Vec<Insn> {
    let mut code = Vec::new();
    let words = bytes.chunks_exact(8);
    let tail = words.remainder();
    for (i, word) in words.enumerate() {
        let word = u64::from_ne_bytes(word.try_into().expect("eight bytes"));
        code.extend(load_imm64(2, word));
        code.push(store64(7, 2, 8 * i as i16));
    }
    for (i, &byte) in tail.iter().enumerate() {
        code.push(store8_imm(7, (bytes.len() - tail.len() + i) as i16, byte));
    }
    code
}
