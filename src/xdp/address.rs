//! Where a descriptor keeps the address of its packet.
//!
//! `xsk-rs` lets the address be read (`FrameDesc::addr`) but not set, and pushing a header in place moves the
//! packet's start. This is the one place that knows how it is set all the same; a setter in `xsk-rs` would
//! replace it.

use std::mem::MaybeUninit;

use xsk_rs::FrameDesc;

/// The position of the address inside a [`FrameDesc`], found once by experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AddressSlot {
    offset: usize,
}

impl AddressSlot {
    /// Finds the slot: writes a value at each aligned position of a copy and asks the public getters whether
    /// the address, and the address alone, changed. `None` unless exactly one position answers.
    pub fn locate() -> Option<Self> {
        let last = size_of::<FrameDesc>().checked_sub(size_of::<usize>())?;
        let mut answers = (0..=last)
            .step_by(align_of::<usize>())
            .filter(|&offset| sets_address_alone(offset));
        let offset = answers.next()?;
        answers.next().is_none().then_some(Self { offset })
    }

    /// Lets `desc` point at `addr`, an offset in bytes from the start of the UMEM.
    #[inline]
    pub fn set(self, desc: &mut FrameDesc, addr: usize) {
        // SAFETY: `locate` found `offset` inside a `FrameDesc` and aligned for a `usize`, and that an integer
        // written there is what `addr()` returns. The descriptor is borrowed exclusively; no frame is touched.
        unsafe {
            std::ptr::from_mut(desc)
                .cast::<u8>()
                .add(self.offset)
                .cast::<usize>()
                .write(addr);
        }
    }
}

/// Whether a `usize` written at `offset` changes `addr()` to that value and nothing else that can be seen.
fn sets_address_alone(offset: usize) -> bool {
    let probes: [usize; 2] = [0x5a5a_1234, 0x0012_3400];
    probes.into_iter().all(|probe| {
        let mut copy = MaybeUninit::new(FrameDesc::default());
        // SAFETY: the write stays inside the copy and is aligned for it. Every field of `FrameDesc` in the
        // version that Cargo.toml pins is an integer, so any value is valid, and overwritten padding means
        // nothing. The copy describes no frame and is given to nobody.
        let copy = unsafe {
            copy.as_mut_ptr()
                .cast::<u8>()
                .add(offset)
                .cast::<usize>()
                .write(probe);
            copy.assume_init_ref()
        };
        copy.addr() == probe
            && copy.options() == 0
            && copy.lengths().data() == 0
            && copy.lengths().headroom() == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_position_holds_the_address() {
        let slot = AddressSlot::locate().expect("one position answers");
        let mut desc = FrameDesc::default();
        desc.set_options(7);
        slot.set(&mut desc, 0x1_f0f0);
        assert_eq!((desc.addr(), desc.options()), (0x1_f0f0, 7));
        assert_eq!((desc.lengths().data(), desc.lengths().headroom()), (0, 0));
    }

    #[test]
    fn every_other_position_is_refused() {
        let slot = AddressSlot::locate().expect("one position answers");
        let others = (0..=size_of::<FrameDesc>() - size_of::<usize>())
            .step_by(align_of::<usize>())
            .filter(|&offset| offset != slot.offset);
        for offset in others {
            assert!(!sets_address_alone(offset), "position {offset}");
        }
    }
}
