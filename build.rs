//! Compiles the BPF programs and generates their skeletons into OUT_DIR; says what the program is made of.

use std::{env, fs, path::PathBuf, process::Command};

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
    println!("cargo:rustc-env=GREYHOUND_VERSION={}", version());
}

/// What `--version` says: which sources, and which libraries were built in, by their crates (behind the plus sign is what
/// the crate says that it brings).
fn version() -> String {
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    println!("cargo:rerun-if-changed=Cargo.lock");
    let lock = fs::read_to_string("Cargo.lock").unwrap_or_default();
    let locked = |name: &str| {
        let behind = lock.split_once(&format!("name = \"{name}\"\nversion = \""));
        let found = behind.and_then(|(_, rest)| rest.split('"').next());
        format!("{name} {}", found.unwrap_or("of unknown version"))
    };
    let parts = [commit(), locked("libbpf-sys"), locked("libxdp-sys")];
    format!("{version} ({})", parts.join(", "))
}

/// The commit: as a packager says, as `git archive` has written it, or as git knows it. A debug build does not ask git: it
/// would be built anew with every commit.
fn commit() -> String {
    println!("cargo:rerun-if-env-changed=GREYHOUND_COMMIT");
    println!("cargo:rerun-if-changed=packaging/commit");
    let said = env::var("GREYHOUND_COMMIT").ok();
    let archived = || {
        let text = fs::read_to_string("packaging/commit").ok()?;
        (!text.starts_with('$')).then_some(text)
    };
    let commit = said.or_else(archived).or_else(|| {
        if env::var("PROFILE").ok()? == "debug" {
            return Some("a debug build".to_owned());
        }
        // Sources that lie in somebody else's repository are not of its commit.
        git(&["ls-files", "--error-unmatch", "build.rs"])?;
        // Written with every commit, checkout and merge.
        println!(
            "cargo:rerun-if-changed={}",
            git(&["rev-parse", "--git-path", "logs/HEAD"])?
        );
        git(&[
            "describe",
            "--always",
            "--dirty",
            "--abbrev=12",
            "--exclude=*",
        ])
        .map(|id| format!("commit {id}"))
    });
    commit.map_or("commit unknown".to_owned(), |text| text.trim().to_owned())
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
