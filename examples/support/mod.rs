//! Small XDP programs, written instruction by instruction: what examples and tests need beside the router's own.
//!
//! They are loaded without a compiler and held by file descriptors, so that nothing stays when the process ends.

// Every user needs a part of it only.
#![allow(dead_code)]
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use libbpf_rs::libbpf_sys as bpf;

pub mod generator;
pub mod sink;

/// XDP's verdicts.
pub const XDP_DROP: i32 = 1;
pub const XDP_PASS: i32 = 2;
pub const XDP_TX: i32 = 3;

/// One BPF instruction.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Insn {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The instructions that the programs below are made of. Registers are numbers; r1 is the context at the start.
pub mod insn {
    use super::Insn;

    const fn insn(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Insn {
        let registers = if cfg!(target_endian = "little") {
            src << 4 | dst
        } else {
            dst << 4 | src
        };
        Insn {
            code,
            registers,
            offset,
            immediate,
        }
    }

    pub const fn mov(dst: u8, src: u8) -> Insn {
        insn(0xbf, dst, src, 0, 0)
    }
    pub const fn mov_imm(dst: u8, imm: i32) -> Insn {
        insn(0xb7, dst, 0, 0, imm)
    }
    pub const fn add_imm(dst: u8, imm: i32) -> Insn {
        insn(0x07, dst, 0, 0, imm)
    }
    pub const fn sub(dst: u8, src: u8) -> Insn {
        insn(0x1f, dst, src, 0, 0)
    }
    pub const fn modulo_imm(dst: u8, imm: i32) -> Insn {
        insn(0x94, dst, 0, 0, imm)
    }
    pub const fn to_be16(dst: u8) -> Insn {
        insn(0xdc, dst, 0, 0, 16)
    }
    pub const fn mov32(dst: u8, src: u8) -> Insn {
        insn(0xbc, dst, src, 0, 0)
    }
    pub const fn shift_right(dst: u8, bits: i32) -> Insn {
        insn(0x77, dst, 0, 0, bits)
    }
    pub const fn load64(dst: u8, src: u8, offset: i16) -> Insn {
        insn(0x79, dst, src, offset, 0)
    }
    pub const fn load32(dst: u8, src: u8, offset: i16) -> Insn {
        insn(0x61, dst, src, offset, 0)
    }
    pub const fn store8_imm(dst: u8, offset: i16, imm: u8) -> Insn {
        insn(0x72, dst, 0, offset, imm as i32)
    }
    pub const fn store32_imm(dst: u8, offset: i16, imm: i32) -> Insn {
        insn(0x62, dst, 0, offset, imm)
    }
    pub const fn store32(dst: u8, src: u8, offset: i16) -> Insn {
        insn(0x63, dst, src, offset, 0)
    }
    pub const fn store16(dst: u8, src: u8, offset: i16) -> Insn {
        insn(0x6b, dst, src, offset, 0)
    }
    pub const fn store64(dst: u8, src: u8, offset: i16) -> Insn {
        insn(0x7b, dst, src, offset, 0)
    }
    pub const fn atomic_add64(dst: u8, src: u8, offset: i16) -> Insn {
        insn(0xdb, dst, src, offset, 0)
    }
    pub const fn jump_greater(dst: u8, src: u8, over: i16) -> Insn {
        insn(0x2d, dst, src, over, 0)
    }
    pub const fn jump_at_least_imm(dst: u8, imm: i32, over: i16) -> Insn {
        insn(0x35, dst, 0, over, imm)
    }
    pub const fn jump_at_most_imm(dst: u8, imm: i32, over: i16) -> Insn {
        insn(0xb5, dst, 0, over, imm)
    }
    pub const fn jump_nonzero(dst: u8, over: i16) -> Insn {
        insn(0x55, dst, 0, over, 0)
    }
    pub const fn jump_zero(dst: u8, over: i16) -> Insn {
        insn(0x15, dst, 0, over, 0)
    }
    pub const fn call(helper: i32) -> Insn {
        insn(0x85, 0, 0, 0, helper)
    }
    pub const fn exit() -> Insn {
        insn(0x95, 0, 0, 0, 0)
    }
    /// A 64-bit constant: two instructions.
    pub const fn load_imm64(dst: u8, value: u64) -> [Insn; 2] {
        [
            insn(0x18, dst, 0, 0, value as i32),
            insn(0, 0, 0, 0, (value >> 32) as i32),
        ]
    }
    /// The map behind a file descriptor: two instructions.
    pub const fn load_map(dst: u8, fd: i32) -> [Insn; 2] {
        [insn(0x18, dst, 1, 0, fd), insn(0, 0, 0, 0, 0)]
    }
}

/// Where `struct xdp_md` has its fields.
const MD_DATA: i16 = 0;
const MD_DATA_END: i16 = 4;
const MD_RX_QUEUE: i16 = 16;

/// Helpers by their numbers.
const MAP_LOOKUP: i32 = 1;
const KTIME_GET_NS: i32 = 5;
const GET_PRANDOM: i32 = 7;
const REDIRECT: i32 = 23;
const REDIRECT_MAP: i32 = 51;
const XDP_ADJUST_TAIL: i32 = 65;

fn owned(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: libbpf has just returned it, and nobody else closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn done(answer: i32) -> io::Result<()> {
    if answer < 0 {
        return Err(io::Error::from_raw_os_error(-answer));
    }
    Ok(())
}

fn map(kind: bpf::bpf_map_type, value_size: u32, entries: u32) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string, and absent options mean the defaults.
    owned(unsafe {
        bpf::bpf_map_create(
            kind,
            c"greyhound_x".as_ptr(),
            4,
            value_size,
            entries,
            std::ptr::null(),
        )
    })
}

/// Reads entry `key` of an array map into `value`, which is as large as the map's.
fn entry<const N: usize>(map: &OwnedFd, key: u32) -> io::Result<[u64; N]> {
    let mut value = [0u64; N];
    // SAFETY: the key is four bytes; whoever made the map chose N by its value's size.
    done(unsafe {
        bpf::bpf_map_lookup_elem(
            map.as_raw_fd(),
            (&raw const key).cast(),
            value.as_mut_ptr().cast(),
        )
    })?;
    Ok(value)
}

/// A loaded XDP program.
pub struct Program(OwnedFd);

impl Program {
    /// Loads instructions; the verifier's words are the error's.
    pub fn load(insns: &[Insn]) -> io::Result<Self> {
        let mut log = vec![0u8; 65536];
        let mut options = bpf::bpf_prog_load_opts {
            sz: size_of::<bpf::bpf_prog_load_opts>() as bpf::size_t,
            expected_attach_type: bpf::BPF_XDP,
            log_level: 1,
            log_size: log.len() as u32,
            log_buf: log.as_mut_ptr().cast(),
            ..Default::default()
        };
        // SAFETY: `Insn` has the kernel's layout, and every pointer outlives the call.
        let fd = unsafe {
            bpf::bpf_prog_load(
                bpf::BPF_PROG_TYPE_XDP,
                c"greyhound_x".as_ptr(),
                c"GPL".as_ptr(),
                insns.as_ptr().cast(),
                insns.len() as bpf::size_t,
                &raw mut options,
            )
        };
        owned(fd).map(Self).map_err(|e| {
            let end = log.iter().position(|&b| b == 0).unwrap_or(log.len());
            io::Error::other(format!("{e}\n{}", String::from_utf8_lossy(&log[..end])))
        })
    }

    /// Attaches the program to a device, in the driver where `native`. It stays until the link is dropped.
    pub fn attach(&self, ifindex: u32, native: bool) -> io::Result<OwnedFd> {
        let options = bpf::bpf_link_create_opts {
            sz: size_of::<bpf::bpf_link_create_opts>() as bpf::size_t,
            flags: if native {
                bpf::XDP_FLAGS_DRV_MODE
            } else {
                bpf::XDP_FLAGS_SKB_MODE
            },
            ..Default::default()
        };
        // SAFETY: both descriptors are plain numbers, and the options outlive the call.
        owned(unsafe {
            bpf::bpf_link_create(
                self.0.as_raw_fd(),
                ifindex as i32,
                bpf::BPF_XDP,
                &raw const options,
            )
        })
    }

    /// Runs the program `repeat` times on copies of `frame`, `batch` before each flush (0: the kernel's 64), and
    /// lets the kernel carry out what it returns. Blocks until all are done.
    pub fn run_live(&self, frame: &[u8], repeat: i32, batch: u32) -> io::Result<()> {
        let mut options = bpf::bpf_test_run_opts {
            sz: size_of::<bpf::bpf_test_run_opts>() as bpf::size_t,
            data_in: frame.as_ptr().cast(),
            data_size_in: frame.len() as u32,
            repeat,
            batch_size: batch,
            flags: bpf::BPF_F_TEST_XDP_LIVE_FRAMES,
            ..Default::default()
        };
        // SAFETY: the frame outlives the call, and nothing is written back with live frames.
        done(unsafe { bpf::bpf_prog_test_run_opts(self.0.as_raw_fd(), &raw mut options) })
    }
}

/// Redirects every packet into the AF_XDP socket of its receive queue; without one it passes.
pub struct RedirectAll {
    pub program: Program,
    sockets: OwnedFd,
}

impl RedirectAll {
    /// For receive queues below `queues`.
    pub fn load(queues: u32) -> io::Result<Self> {
        use insn::*;
        let sockets = map(bpf::BPF_MAP_TYPE_XSKMAP, 4, queues)?;
        let mut code = vec![load32(2, 1, MD_RX_QUEUE)];
        code.extend(load_map(1, sockets.as_raw_fd()));
        code.extend([mov_imm(3, XDP_PASS), call(REDIRECT_MAP), exit()]);
        Ok(Self {
            program: Program::load(&code)?,
            sockets,
        })
    }

    /// Puts a socket into a queue's slot.
    pub fn steer(&self, queue: u32, socket: RawFd) -> io::Result<()> {
        // SAFETY: key and value are four bytes each, as the map wants them.
        done(unsafe {
            bpf::bpf_map_update_elem(
                self.sockets.as_raw_fd(),
                (&raw const queue).cast(),
                (&raw const socket).cast(),
                0,
            )
        })
    }
}

/// A device's interface index.
pub fn index_of(device: &str) -> io::Result<u32> {
    let name = CString::new(device)?;
    // SAFETY: the name is a C string.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::other(format!(
            "{device}: {}",
            io::Error::last_os_error()
        ))),
        index => Ok(index),
    }
}

/// Pins this thread to a CPU.
pub fn pin(cpu: Option<usize>) -> io::Result<()> {
    match cpu {
        Some(id) if !core_affinity::set_for_current(core_affinity::CoreId { id }) => {
            Err(io::Error::other(format!("cannot pin to CPU {id}")))
        }
        _ => Ok(()),
    }
}
