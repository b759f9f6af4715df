//! Writes the seed corpus: `seeds DIR` makes DIR/TARGET with one file per input.

use std::{env, fs, io, path::Path};

fn main() -> io::Result<()> {
    let dir = env::args().nth(1).expect("usage: seeds DIR");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (target, _) in greyhound_fuzz::TARGETS {
        let dir = Path::new(&dir).join(target);
        fs::create_dir_all(&dir)?;
        for (n, seed) in greyhound_fuzz::seeds::of(target, &root).iter().enumerate() {
            fs::write(dir.join(format!("seed-{n:04}")), seed)?;
        }
    }
    Ok(())
}
