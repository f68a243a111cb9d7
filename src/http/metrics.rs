//! Metrics: the one list of what is counted and measured, and its rendering for Prometheus.
//!
//! Never a name of a cache, a contributor or a path in a label: `/metrics` is open to whoever reaches it.

use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

/// One metric.
#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: MetricKind,
    /// The names of its labels. Each has few values.
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

/// Every metric of this program. A test compares this list with the code.
pub const METRICS: &[Metric] = &[
    counter("narvault_backup_failures_total", &[], "Scheduled backups to storage that failed"),
    gauge(
        "narvault_backup_newest_timestamp_seconds",
        &[],
        "When the newest scheduled backup that succeeded was begun, in Unix time",
    ),
    counter("narvault_conflicts_total", &[], "Claims refused because another one stands at the path"),
    counter("narvault_denials_total", &[], "Calls denied, of those that are written down as such"),
    gauge("narvault_build_info", &["version"], "Always 1; the label says which version runs"),
    gauge("narvault_database_up", &[], "1 if the database answered this scrape, else 0"),
    histogram(
        "narvault_http_request_duration_seconds",
        &["route"],
        "Time from a request's head to its answer's",
    ),
    counter("narvault_http_requests_total", &["route", "method", "status"], "Requests answered"),
    gauge(
        "narvault_kek_rows_behind",
        &[],
        "Keys and webhooks that are sealed with an older key-encryption key than the newest",
    ),
    gauge(
        "narvault_kek_rows_damaged",
        &[],
        "Of these, those that the rotation of the key-encryption key could not open",
    ),
    histogram(
        "narvault_log_append_seconds",
        &[],
        "Time that a transaction of publications spends on its leaves of the log, the lock included",
    ),
    gauge("narvault_log_behind_leaves", &[], "Leaves of the signature log that no checkpoint covers yet"),
    gauge("narvault_log_cosignatures", &[], "Witnesses who cosigned the checkpoint that was published last"),
    gauge("narvault_log_forked", &[], "1 if this replica stopped signing because the log contradicts itself"),
    counter("narvault_nars_stored_total", &[], "NARs measured and stored"),
    gauge("narvault_orphan_objects", &[], "Objects in storage that no row accounts for, counted once a day"),
    gauge("narvault_outbox_objects", &[], "Objects that wait to be written to storage or deleted from it"),
    gauge("narvault_outbox_oldest_seconds", &[], "How long the oldest of them has waited"),
    histogram(
        "narvault_publish_transaction_seconds",
        &[],
        "Time of a transaction of publications, the gate and the commit included",
    ),
    counter("narvault_paths_published_total", &[], "Paths signed and published"),
    counter("narvault_paths_restored_total", &[], "Withdrawn paths that a restoration brought back"),
    counter("narvault_paths_withdrawn_total", &[], "Paths withdrawn by a quarantine"),
    gauge(
        "narvault_quarantines_unfinished",
        &[],
        "Quarantines and restorations that were broken off and are to be gone on with",
    ),
    counter(
        "narvault_release_failures_total",
        &[],
        "Failed tries to write or delete an object of the outbox",
    ),
    counter("narvault_signatures_total", &[], "Signatures made"),
    counter("narvault_upload_bytes_total", &[], "Bytes of NARs received"),
    gauge(
        "narvault_rotation_left",
        &[],
        "Paths and realisations that rotations of keys have not looked at yet",
    ),
    counter("narvault_resigned_total", &[], "Paths and realisations signed again by another key"),
    counter(
        "narvault_unlogged_signatures_total",
        &[],
        "Signatures found that no leaf of the log accounts for",
    ),
    gauge("narvault_vault_open", &[], "1 if the vault is open on this replica, 0 if it is sealed"),
    gauge(
        "narvault_vault_waiting_for_kms",
        &[],
        "1 while this replica is sealed and asks KMS again and again to open the vault",
    ),
    counter(
        "narvault_webhook_deliveries_total",
        &["outcome"],
        "Attempts to tell a webhook: delivered, failed or given-up; and events not queued: dropped",
    ),
    gauge("narvault_webhook_oldest_seconds", &[], "How long the oldest delivery to a webhook has waited"),
    gauge("narvault_webhook_waiting", &[], "Deliveries that wait for webhooks that are not paused"),
];

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Counter, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Gauge, labels, help }
}

const fn histogram(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Histogram, labels, help }
}

/// Makes this process count, from now on. Doing it again changes nothing.
pub(super) fn install() {
    handle();
}

/// The metrics as Prometheus reads them.
pub(super) fn render() -> String {
    let Some(handle) = handle() else { return String::new() };
    handle.run_upkeep();
    handle.render()
}

/// The recorder of this process. `None`: another one was installed first, which then has the numbers.
fn handle() -> Option<&'static PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let recorder = PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), DURATION_BUCKETS_SECONDS)
                .inspect_err(|error| tracing::error!(%error, "no buckets for durations"))
                .ok()?
                .build_recorder();
            let handle = recorder.handle();
            if let Err(error) = ::metrics::set_global_recorder(recorder) {
                tracing::warn!(%error, "metrics go to another recorder");
                return None;
            }
            describe();
            keep_up(handle.clone());
            Some(handle)
        })
        .as_ref()
}

fn describe() {
    for metric in METRICS {
        match metric.kind {
            MetricKind::Counter => ::metrics::describe_counter!(metric.name, metric.help),
            MetricKind::Gauge => ::metrics::describe_gauge!(metric.name, metric.help),
            MetricKind::Histogram => ::metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}

/// Sorts samples into their buckets now and then: where nobody scrapes, they would pile up.
fn keep_up(handle: PrometheusHandle) {
    let upkeep = move || {
        loop {
            std::thread::sleep(UPKEEP_PAUSE);
            handle.run_upkeep();
        }
    };
    if let Err(error) = std::thread::Builder::new().name("metrics".to_owned()).spawn(upkeep) {
        tracing::warn!(%error, "no thread for the upkeep of metrics; scrapes do it");
    }
}

const UPKEEP_PAUSE: Duration = Duration::from_secs(5);

/// From a remembered narinfo to the upload of a large NAR.
const DURATION_BUCKETS_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_metric_is_listed_once_and_named_as_prometheus_wants_it() {
        for (at, metric) in METRICS.iter().enumerate() {
            let name = metric.name;
            assert!(name.starts_with("narvault_"), "{name}");
            assert!(METRICS[at + 1..].iter().all(|other| other.name != name), "{name} twice");
            assert_eq!(metric.kind == MetricKind::Counter, name.ends_with("_total"), "{name}");
            assert!(!metric.help.is_empty() && !metric.help.ends_with('.'), "{name}");
        }
    }

    #[test]
    fn what_was_counted_is_rendered() {
        install();

        ::metrics::counter!("narvault_denials_total").increment(3);
        ::metrics::histogram!("narvault_http_request_duration_seconds", "route" => "own").record(0.002);
        let text = render();

        assert!(text.contains("# TYPE narvault_denials_total counter"), "{text}");
        assert!(
            text.contains("narvault_http_request_duration_seconds_bucket{route=\"own\",le=\"0.0025\"}"),
            "{text}"
        );
    }
}
