//! The list of metrics is the code's: nothing counted is missing from it, nothing in it is not counted.

use std::collections::BTreeMap;
use std::path::Path;

use narvault::http::{METRICS, MetricKind};

/// The macros that count, and what each makes.
const MACROS: [(&str, MetricKind); 3] = [
    ("counter!(", MetricKind::Counter),
    ("gauge!(", MetricKind::Gauge),
    ("histogram!(", MetricKind::Histogram),
];

#[test]
fn every_metric_of_the_code_is_listed_and_every_listed_one_is_in_the_code() {
    let mut used = BTreeMap::new();
    visit(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut used);

    for metric in METRICS {
        let (kind, labels) =
            used.remove(metric.name).unwrap_or_else(|| panic!("{}: nobody counts it", metric.name));
        assert_eq!(kind, metric.kind, "{}", metric.name);
        assert_eq!(labels, metric.labels, "{}", metric.name);
    }

    assert!(used.is_empty(), "not in METRICS: {used:?}");
}

fn visit(folder: &Path, used: &mut BTreeMap<String, (MetricKind, Vec<String>)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            visit(&path, used);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            collect(&std::fs::read_to_string(&path).unwrap(), used);
        }
    }
}

/// Finds the name, the first text of a call, and its labels, the texts before an arrow.
fn collect(code: &str, used: &mut BTreeMap<String, (MetricKind, Vec<String>)>) {
    for (start, kind) in MACROS {
        for (at, _) in code.match_indices(start) {
            if code[..at].ends_with("describe_") {
                continue;
            }
            let call = code[at + start.len()..].split(';').next().unwrap_or_default();
            let call = call.split(").").next().unwrap_or_default();
            let Some(name) = call.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next())
            else {
                continue;
            };
            let labels =
                call.match_indices("=>").filter_map(|(arrow, _)| call[..arrow].trim_end().strip_suffix('"'));
            let labels = labels.filter_map(|before| before.rsplit('"').next()).map(str::to_owned).collect();
            used.insert(name.to_owned(), (kind, labels));
        }
    }
}
