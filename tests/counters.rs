//! Every counter's name stands in the documents.

use std::{fs, path::Path};

use greyhound::{
    control::report::{PortReport, SlowPathReport},
    datapath::{DropReason, PuntReason},
};

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The names in the first cells of a document's tables.
fn names(text: &str) -> Vec<&str> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let first = rows.filter_map(|row| row.split(" | ").next());
    first.flat_map(|cell| cell.split('`').step_by(2)).collect()
}

#[test]
fn every_reason_is_explained() {
    let readme = document("README.md");
    let documented = names(&readme);
    let header = document("bpf/steer.h");
    let steering = header
        .lines()
        .filter_map(|l| l.trim().strip_prefix("X(")?.split(')').next());
    let reasons = (DropReason::ALL.iter().map(|r| r.as_str()))
        .chain(PuntReason::ALL.iter().map(|r| r.as_str()))
        .chain(steering);
    for reason in reasons {
        assert!(
            documented.contains(&reason),
            "README.md: no row for {reason}"
        );
    }
}

#[test]
fn every_counter_is_explained() {
    let text = document("docs/counters.md");
    let documented = names(&text);
    let port = serde_json::to_value(PortReport::default()).unwrap();
    let slow = serde_json::to_value(SlowPathReport::default()).unwrap();
    let fields = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    for field in fields(&port) {
        if !["device", "queue", "mode"].contains(&field.as_str()) {
            assert!(documented.contains(&field.as_str()), "no row for {field}");
        }
    }
    for field in fields(&slow) {
        // Drops are by reason, and icmp has its parts in one row.
        if !["drops", "icmp"].contains(&field.as_str()) {
            assert!(documented.contains(&field.as_str()), "no row for {field}");
        }
    }
}
