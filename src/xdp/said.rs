//! What libbpf says on its own: into our log, and not onto stderr.

use std::cell::Cell;

use libbpf_rs::{PrintLevel, set_print};

thread_local! {
    /// What fails now may fail.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// From now on libbpf's warnings are ours, and all else of it is for who debugs. To be called before anything uses libbpf.
pub fn listen_to_libbpf() {
    set_print(Some((PrintLevel::Debug, |level, said| {
        let said = said.trim_end();
        match level {
            PrintLevel::Warn if !EXPECTED.get() => tracing::warn!("{said}"),
            _ => tracing::debug!("{said}"),
        }
    })));
}

/// Does what may fail, because the caller goes on another way then: no warning is due.
pub(super) fn expecting<T>(work: impl FnOnce() -> T) -> T {
    let before = EXPECTED.replace(true);
    let done = work();
    EXPECTED.set(before);
    done
}
