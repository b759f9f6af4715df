//! Packet filters in the kernel's classic BPF, as tcpdump compiles them (`tcpdump -y EN10MB -ddd`).
//!
//! A program is checked once, as the kernel's `bpf_check_classic` (net/core/filter.c) does it: it only jumps forward, within
//! itself, and ends with a return. So it ends, whatever the packet.

use thiserror::Error;

/// The longest program (`BPF_MAXINSNS`).
pub const MAX_LEN: usize = 4096;
/// Words of scratch memory (`BPF_MEMWORDS`).
const MEMORY: usize = 16;

/// An instruction as it stands in `struct sock_filter`: code, jump if true, jump if false, operand.
pub type Instruction = (u16, u8, u8, u32);

/// Why a program is refused; one line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FilterError {
    #[error("the filter has {0} instructions: 1 to {MAX_LEN} are accepted")]
    Length(usize),
    #[error("instruction {0} of the filter is unknown")]
    Unknown(usize),
    #[error("instruction {0} of the filter leads out of it")]
    Jump(usize),
    #[error("the filter does not end with a return")]
    End,
}

/// Where a load takes its value from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Immediate,
    Absolute,
    Indirect,
    Memory,
    Length,
    /// Four times the low half of a byte: an IPv4 header's length.
    HeaderLength,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    Or,
    And,
    Xor,
    ShiftLeft,
    ShiftRight,
    Negate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    Always,
    Equal,
    Greater,
    GreaterOrEqual,
    AnyBit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    LoadA(From, usize, u32),
    LoadX(From, u32),
    StoreA(usize),
    StoreX(usize),
    /// With X, or with a constant.
    Compute(Operation, Option<u32>),
    Jump(Test, Option<u32>, usize, usize),
    ReturnA,
    Return(u32),
    AToX,
    XToA,
}

/// A checked program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(Box<[Step]>);

impl Filter {
    pub fn new(program: &[Instruction]) -> Result<Self, FilterError> {
        if program.is_empty() || program.len() > MAX_LEN {
            return Err(FilterError::Length(program.len()));
        }
        let steps = program.iter().enumerate();
        let steps: Vec<Step> = steps
            .map(|(at, instruction)| step(at, instruction, program.len()))
            .collect::<Result<_, _>>()?;
        match steps.last() {
            Some(Step::Return(_) | Step::ReturnA) => Ok(Self(steps.into())),
            _ => Err(FilterError::End),
        }
    }

    /// Whether the program accepts a frame. A load from behind its end refuses it.
    pub fn accepts(&self, frame: &[u8]) -> bool {
        self.run(frame).is_some_and(|accepted| accepted != 0)
    }

    fn run(&self, frame: &[u8]) -> Option<u32> {
        let (mut a, mut x, mut memory) = (0u32, 0u32, [0u32; MEMORY]);
        let mut at = 0;
        loop {
            let step = *self.0.get(at)?;
            at += 1;
            match step {
                Step::LoadA(from, size, k) => a = load(frame, (from, size, k), x, &memory)?,
                Step::LoadX(from, k) => x = load(frame, (from, 1, k), x, &memory)?,
                Step::StoreA(slot) => memory[slot] = a,
                Step::StoreX(slot) => memory[slot] = x,
                Step::Compute(operation, k) => a = compute(operation, a, k.unwrap_or(x))?,
                Step::Jump(test, k, yes, no) => {
                    at = if holds(test, a, k.unwrap_or(x)) {
                        yes
                    } else {
                        no
                    }
                }
                Step::ReturnA => return Some(a),
                Step::Return(k) => return Some(k),
                Step::AToX => x = a,
                Step::XToA => a = x,
            }
        }
    }
}

fn load(
    frame: &[u8],
    (from, size, k): (From, usize, u32),
    x: u32,
    memory: &[u32; MEMORY],
) -> Option<u32> {
    let at = match from {
        From::Immediate => return Some(k),
        From::Length => return Some(frame.len() as u32),
        From::Memory => return memory.get(k as usize).copied(),
        From::Absolute | From::HeaderLength => k,
        From::Indirect => k.checked_add(x)?,
    } as usize;
    let bytes = frame.get(at..at.checked_add(size)?)?;
    let value = bytes
        .iter()
        .fold(0, |value, byte| value << 8 | u32::from(*byte));
    Some(match from {
        From::HeaderLength => 4 * (value & 0x0f),
        _ => value,
    })
}

/// None for a division by zero, which refuses the packet.
fn compute(operation: Operation, a: u32, b: u32) -> Option<u32> {
    Some(match operation {
        Operation::Add => a.wrapping_add(b),
        Operation::Subtract => a.wrapping_sub(b),
        Operation::Multiply => a.wrapping_mul(b),
        Operation::Divide => a.checked_div(b)?,
        Operation::Modulo => a.checked_rem(b)?,
        Operation::Or => a | b,
        Operation::And => a & b,
        Operation::Xor => a ^ b,
        Operation::ShiftLeft => a.checked_shl(b).unwrap_or(0),
        Operation::ShiftRight => a.checked_shr(b).unwrap_or(0),
        Operation::Negate => a.wrapping_neg(),
    })
}

fn holds(test: Test, a: u32, b: u32) -> bool {
    match test {
        Test::Always => true,
        Test::Equal => a == b,
        Test::Greater => a > b,
        Test::GreaterOrEqual => a >= b,
        Test::AnyBit => a & b != 0,
    }
}

/// One instruction (linux/bpf_common.h): class in the lowest three bits, then what depends on it.
fn step(at: usize, &(code, yes, no, k): &Instruction, len: usize) -> Result<Step, FilterError> {
    let unknown = Err(FilterError::Unknown(at));
    let size = match code & 0x18 {
        0x00 => 4,
        0x08 => 2,
        _ => 1,
    };
    let slot = k as usize;
    let operand = match code & 0x08 {
        0 => Some(k),
        _ => None,
    };
    Ok(match (code & 0x07, code & 0xe0) {
        (0x00, 0x00) => Step::LoadA(From::Immediate, size, k),
        (0x00, 0x20) => Step::LoadA(From::Absolute, size, k),
        (0x00, 0x40) => Step::LoadA(From::Indirect, size, k),
        (0x00, 0x60) if slot < MEMORY => Step::LoadA(From::Memory, size, k),
        (0x00, 0x80) => Step::LoadA(From::Length, size, k),
        (0x01, 0x00) => Step::LoadX(From::Immediate, k),
        (0x01, 0x60) if slot < MEMORY => Step::LoadX(From::Memory, k),
        (0x01, 0x80) => Step::LoadX(From::Length, k),
        (0x01, 0xa0) => Step::LoadX(From::HeaderLength, k),
        (0x02, _) if slot < MEMORY => Step::StoreA(slot),
        (0x03, _) if slot < MEMORY => Step::StoreX(slot),
        (0x04, _) => match operation(code & 0xf0) {
            Some(operation) => Step::Compute(operation, operand),
            None => return unknown,
        },
        (0x05, _) => {
            let (test, yes, no) = match code & 0xf0 {
                0x00 => (Test::Always, k as usize, k as usize),
                0x10 => (Test::Equal, yes.into(), no.into()),
                0x20 => (Test::Greater, yes.into(), no.into()),
                0x30 => (Test::GreaterOrEqual, yes.into(), no.into()),
                0x40 => (Test::AnyBit, yes.into(), no.into()),
                _ => return unknown,
            };
            let to = |distance: usize| {
                let to = (at + 1).checked_add(distance);
                to.filter(|to| *to < len).ok_or(FilterError::Jump(at))
            };
            Step::Jump(test, operand, to(yes)?, to(no)?)
        }
        (0x06, _) if code & 0x18 == 0x10 => Step::ReturnA,
        (0x06, _) if code & 0x18 == 0 => Step::Return(k),
        (0x07, _) if code & 0xf8 == 0 => Step::AToX,
        (0x07, _) if code & 0xf8 == 0x80 => Step::XToA,
        _ => return unknown,
    })
}

fn operation(code: u16) -> Option<Operation> {
    Some(match code {
        0x00 => Operation::Add,
        0x10 => Operation::Subtract,
        0x20 => Operation::Multiply,
        0x30 => Operation::Divide,
        0x40 => Operation::Or,
        0x50 => Operation::And,
        0x60 => Operation::ShiftLeft,
        0x70 => Operation::ShiftRight,
        0x80 => Operation::Negate,
        0x90 => Operation::Modulo,
        0xa0 => Operation::Xor,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `tcpdump -y EN10MB -ddd 'udp port 53'`.
    const DNS: [Instruction; 20] = [
        (40, 0, 0, 12),
        (21, 0, 6, 34525),
        (48, 0, 0, 20),
        (21, 0, 15, 17),
        (40, 0, 0, 54),
        (21, 12, 0, 53),
        (40, 0, 0, 56),
        (21, 10, 11, 53),
        (21, 0, 10, 2048),
        (48, 0, 0, 23),
        (21, 0, 8, 17),
        (40, 0, 0, 20),
        (69, 6, 0, 8191),
        (177, 0, 0, 14),
        (72, 0, 0, 14),
        (21, 2, 0, 53),
        (72, 0, 0, 16),
        (21, 0, 1, 53),
        (6, 0, 0, 262144),
        (6, 0, 0, 0),
    ];

    fn udp(options: usize, source: u16, destination: u16) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([
            0x08,
            0x00,
            0x45 + options as u8,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            64,
            17,
            0,
            0,
        ]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(vec![1; 4 * options]);
        frame.extend(source.to_be_bytes());
        frame.extend(destination.to_be_bytes());
        frame
    }

    #[test]
    fn a_compiled_expression_judges_frames() {
        let filter = Filter::new(&DNS).unwrap();
        for options in 0..3 {
            assert!(filter.accepts(&udp(options, 53, 1024)));
            assert!(filter.accepts(&udp(options, 1024, 53)));
            assert!(!filter.accepts(&udp(options, 1024, 54)));
        }
        let mut tcp = udp(0, 53, 53);
        tcp[23] = 6;
        assert!(!filter.accepts(&tcp));
        let mut fragment = udp(0, 53, 53);
        fragment[21] = 1;
        assert!(!filter.accepts(&fragment));
        let frame = udp(0, 53, 53);
        for len in 0..36 {
            assert!(!filter.accepts(&frame[..len]), "{len} bytes");
        }
    }

    /// Each pair: instructions that leave a value in A, and the value. The frame is 1, 2, 3, … 16.
    #[test]
    fn every_instruction_does_what_linux_says() {
        let frame: Vec<u8> = (1..=16).collect();
        let cases: &[(&[Instruction], u32)] = &[
            (&[(0x00, 0, 0, 7)], 7),
            (&[(0x20, 0, 0, 1)], 0x0203_0405),
            (&[(0x28, 0, 0, 1)], 0x0203),
            (&[(0x30, 0, 0, 1)], 2),
            (&[(0x80, 0, 0, 0)], 16),
            (&[(0x01, 0, 0, 2), (0x50, 0, 0, 1)], 4),
            (&[(0x01, 0, 0, 2), (0x40, 0, 0, 0)], 0x0304_0506),
            (&[(0xb1, 0, 0, 15), (0x87, 0, 0, 0)], 0),
            (&[(0xb1, 0, 0, 4), (0x87, 0, 0, 0)], 20),
            (&[(0x81, 0, 0, 0), (0x87, 0, 0, 0)], 16),
            (
                &[
                    (0x00, 0, 0, 9),
                    (0x02, 0, 0, 15),
                    (0x00, 0, 0, 0),
                    (0x60, 0, 0, 15),
                ],
                9,
            ),
            (
                &[
                    (0x01, 0, 0, 9),
                    (0x03, 0, 0, 1),
                    (0x61, 0, 0, 1),
                    (0x87, 0, 0, 0),
                ],
                9,
            ),
            (&[(0x00, 0, 0, 9), (0x07, 0, 0, 0), (0x0c, 0, 0, 0)], 18),
            (&[(0x00, 0, 0, 9), (0x04, 0, 0, u32::MAX)], 8),
            (&[(0x00, 0, 0, 9), (0x14, 0, 0, 10)], u32::MAX),
            (&[(0x00, 0, 0, 9), (0x24, 0, 0, 3)], 27),
            (&[(0x00, 0, 0, 9), (0x34, 0, 0, 2)], 4),
            (&[(0x00, 0, 0, 9), (0x44, 0, 0, 6)], 15),
            (&[(0x00, 0, 0, 9), (0x54, 0, 0, 3)], 1),
            (&[(0x00, 0, 0, 9), (0x64, 0, 0, 2)], 36),
            (&[(0x00, 0, 0, 9), (0x64, 0, 0, 32)], 0),
            (&[(0x00, 0, 0, 9), (0x74, 0, 0, 1)], 4),
            (&[(0x00, 0, 0, 9), (0x84, 0, 0, 0)], 9u32.wrapping_neg()),
            (&[(0x00, 0, 0, 9), (0x94, 0, 0, 4)], 1),
            (&[(0x00, 0, 0, 9), (0xa4, 0, 0, 1)], 8),
            (&[(0x05, 0, 0, 1), (0x06, 0, 0, 1), (0x00, 0, 0, 5)], 5),
            (&[(0x15, 0, 1, 0), (0x00, 0, 0, 3)], 3),
            (&[(0x15, 0, 1, 1), (0x00, 0, 0, 3)], 0),
            (&[(0x25, 1, 0, 0), (0x00, 0, 0, 3)], 3),
            (&[(0x35, 0, 1, 0), (0x00, 0, 0, 3)], 3),
            (&[(0x00, 0, 0, 6), (0x45, 0, 1, 2), (0x00, 0, 0, 3)], 3),
            (&[(0x01, 0, 0, 1), (0x1d, 1, 0, 0), (0x00, 0, 0, 3)], 3),
        ];
        for (program, value) in cases {
            let ended: Vec<Instruction> =
                program.iter().copied().chain([(0x16, 0, 0, 0)]).collect();
            let filter = Filter::new(&ended).unwrap();
            assert_eq!(filter.run(&frame), Some(*value), "{program:?}");
        }
        for by_zero in [(0x34, 0, 0, 0), (0x94, 0, 0, 0), (0x3c, 0, 0, 0)] {
            let filter = Filter::new(&[by_zero, (0x06, 0, 0, 1)]).unwrap();
            assert!(!filter.accepts(&frame));
        }
    }

    #[test]
    fn what_could_go_astray_is_refused() {
        let end = (0x06, 0, 0, 1);
        for (program, why) in [
            (vec![], FilterError::Length(0)),
            (vec![end; MAX_LEN + 1], FilterError::Length(MAX_LEN + 1)),
            (vec![(0x00, 0, 0, 1)], FilterError::End),
            (vec![(0x15, 0, 1, 0), end], FilterError::Jump(0)),
            (vec![(0x15, 255, 0, 0), end], FilterError::Jump(0)),
            (vec![(0x05, 0, 0, u32::MAX), end], FilterError::Jump(0)),
            (vec![(0x60, 0, 0, 16), end], FilterError::Unknown(0)),
            (vec![(0x02, 0, 0, 16), end], FilterError::Unknown(0)),
            (vec![(0xf4, 0, 0, 16), end], FilterError::Unknown(0)),
        ] {
            assert_eq!(Filter::new(&program), Err(why), "{program:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_accepted_fails(
            program in prop::collection::vec((0u16..256, 0u8..8, 0u8..8, prop_oneof![0u32..20, any::<u32>()]), 1..40),
            frame in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            if let Ok(filter) = Filter::new(&program) {
                filter.accepts(&frame);
            }
        }
    }
}
