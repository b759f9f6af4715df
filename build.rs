//! Compiles the BPF programs and generates their skeletons into OUT_DIR.

use std::{env, path::PathBuf};

use libbpf_cargo::SkeletonBuilder;

fn main() {
    println!("cargo:rerun-if-changed=bpf");
    let variable = |name| env::var(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    let out = PathBuf::from(variable("OUT_DIR"));
    // Debian and Ubuntu keep asm/types.h in the multiarch directory, which clang does not search
    // when it compiles for the BPF target. Elsewhere the directory does not exist and does no harm.
    let multiarch = format!(
        "-I/usr/include/{}-linux-gnu",
        variable("CARGO_CFG_TARGET_ARCH")
    );
    let mut arguments = vec!["-Wall", "-Wextra", "-mcpu=v3", &multiarch];
    // Ours to mend; a release must also build with a later compiler that knows more warnings.
    if variable("PROFILE") == "debug" {
        arguments.push("-Werror");
    }
    for name in ["steer", "wire"] {
        let source = format!("bpf/{name}.bpf.c");
        let built = SkeletonBuilder::new()
            .source(&source)
            .clang_args(&arguments)
            .build_and_generate(out.join(format!("{name}.skel.rs")));
        if let Err(error) = built {
            panic!(
                "{source} does not build (needed: clang, llvm, libelf-dev, zlib1g-dev, \
                 linux-libc-dev): {error:#}"
            );
        }
    }
}
