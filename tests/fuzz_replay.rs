//! The fuzzer's targets over what it begins with and over everything that it ever found (`fuzz/found/TARGET/`). The long
//! runs are scripts/fuzz.sh's.

use std::path::Path;

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

fn replay(target: &str) -> usize {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (_, run) = fuzz::TARGETS
        .into_iter()
        .find(|(name, _)| *name == target)
        .expect("a target");
    let found = fuzz::seeds::files(&root.join("fuzz/found").join(target));
    let inputs = [found, fuzz::seeds::of(target, root)].concat();
    inputs.iter().for_each(|input| run(input));
    inputs.len()
}

#[test]
fn encapsulate() {
    assert!(replay("encapsulate") > 200);
}

#[test]
fn decapsulate() {
    assert!(replay("decapsulate") > 500);
}

#[test]
fn forward() {
    assert!(replay("forward") > 500);
}

#[test]
fn worker() {
    assert!(replay("worker") > 100);
}

#[test]
fn config() {
    assert!(replay("config") > 0);
}
