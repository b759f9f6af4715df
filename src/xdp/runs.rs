//! Runs: frames side by side at the end of the UMEM, for packets that one frame cannot hold.
//!
//! The kernel receives such a packet into frames from anywhere, and sends one from frames as they are. In between it lies in
//! one piece, in a run, so that whoever works on it need not know.

/// Which runs are free, and how much of the others the kernel has. Offsets are from the UMEM's start.
pub(super) struct Runs {
    begin: usize,
    /// Bytes of a run.
    bytes: usize,
    /// Frames of a run; 1 where there are none.
    pub frames: usize,
    /// The last ones freed, still in the cache, are the first to go out again.
    free: Vec<u32>,
    /// By run: pieces that are with the kernel for transmission.
    departed: Vec<u8>,
}

impl Runs {
    /// `count` runs of `frames` frames of `frame_size` bytes each, from `begin` on.
    pub fn new(begin: usize, count: u32, frames: usize, frame_size: usize) -> Self {
        Self {
            begin,
            bytes: frames * frame_size,
            frames,
            free: (0..count).rev().collect(),
            departed: vec![0; count as usize],
        }
    }

    /// The run that a byte lies in; none for one in a frame by itself.
    #[inline]
    pub fn of(&self, offset: usize) -> Option<usize> {
        (offset >= self.begin).then(|| (offset - self.begin) / self.bytes)
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.departed.len()
    }

    /// Where a run begins that was free.
    pub fn take(&mut self) -> Option<usize> {
        let run = self.free.pop()? as usize;
        Some(self.begin + run * self.bytes)
    }

    /// A run is free again.
    pub fn put(&mut self, run: usize) {
        self.free.push(run as u32);
    }

    /// The kernel gets a packet of so many pieces, at least one, out of a run.
    pub fn depart(&mut self, run: usize, pieces: usize) {
        self.departed[run] = pieces as u8;
    }

    /// The kernel is done with a piece. True with the last one: the run is free then.
    pub fn arrive(&mut self, run: usize) -> bool {
        self.departed[run] -= 1;
        let whole = self.departed[run] == 0;
        if whole {
            self.put(run);
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_free_when_its_last_piece_is_back() {
        let mut runs = Runs::new(8 * 4096, 2, 3, 4096);
        assert_eq!(runs.of(8 * 4096 - 1), None);
        let (a, b) = (runs.take().unwrap(), runs.take().unwrap());
        assert_eq!((a, b, runs.take()), (8 * 4096, 11 * 4096, None));
        assert_eq!(
            [a, a + 3 * 4096 - 1, b].map(|at| runs.of(at)),
            [Some(0), Some(0), Some(1)]
        );
        runs.depart(1, 2);
        assert!(!runs.arrive(1));
        assert_eq!(runs.free(), 0);
        assert!(runs.arrive(1));
        assert_eq!(runs.take(), Some(b));
    }

    #[test]
    fn without_runs_every_frame_is_by_itself() {
        let mut none = Runs::new(8 * 2048, 0, 1, 2048);
        assert_eq!(
            (none.take(), none.count(), none.of(8 * 2048 - 1)),
            (None, 0, None)
        );
    }
}
