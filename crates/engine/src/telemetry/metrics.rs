//! Every metric: name, labels, meaning, once.
//!
//! Names that begin with `litestream_` are Litestream's, with its labels and its meaning, and no others
//! (`spec: control` §3.1). What it does not have begins with `sqlite_replication_`, so that neither a
//! dashboard nor a later version of Litestream can take one for the other.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Counter, CounterVec, Encoder, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts,
    Registry, TextEncoder,
};

use crate::types::Level;

/// Buckets of the durations of storage requests, in seconds.
const REQUEST_BUCKETS: [f64; 9] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0];
/// Buckets of the durations of compactions and snapshots, in seconds.
const UPKEEP_BUCKETS: [f64; 9] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0];

const DB: &[&str] = &["db"];
const DB_MODE: &[&str] = &["db", "mode"];
const DB_REPLICA: &[&str] = &["db", "replica"];
const OPERATION: &[&str] = &["replica_type", "operation"];

/// All metrics of one process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    // Litestream's, per database.
    db_size: GaugeVec,
    wal_size: GaugeVec,
    total_wal_bytes: CounterVec,
    txid: GaugeVec,
    sync_count: CounterVec,
    sync_error_count: CounterVec,
    sync_seconds: CounterVec,
    disk_full: GaugeVec,
    verify_error_count: CounterVec,
    checkpoint_count: CounterVec,
    checkpoint_error_count: CounterVec,
    checkpoint_seconds: CounterVec,
    l0_files: GaugeVec,
    // Litestream's, per storage type.
    operation_total: CounterVec,
    operation_bytes: CounterVec,
    operation_seconds: HistogramVec,
    operation_errors: CounterVec,
    // Of the endpoint itself.
    scrapes: IntCounterVec,
    scrapes_in_flight: IntGauge,
    // Ours.
    lag: GaugeVec,
    last_success: GaugeVec,
    replica_txid: GaugeVec,
    pending_files: GaugeVec,
    replica_failing: GaugeVec,
    wal_file_bytes: GaugeVec,
    wal_alarm: GaugeVec,
    databases: GaugeVec,
    queue: GaugeVec,
    requests: IntCounterVec,
    upkeep_seconds: HistogramVec,
    upkeep_bytes: CounterVec,
    virtual_memory_max: Gauge,
}

/// Registers a metric. Names and labels are constants of this file, so it cannot fail at run time.
fn register<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    #[expect(
        clippy::expect_used,
        reason = "constant names, each used once; any test that makes a `Metrics` tries them"
    )]
    let metric = made.and_then(|metric| registry.register(Box::new(metric.clone())).map(|()| metric)).expect("metric");
    metric
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// No series yet.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        let gauge = |name: &str, help: &str, labels: &[&str]| register(r, GaugeVec::new(Opts::new(name, help), labels));
        let counter =
            |name: &str, help: &str, labels: &[&str]| register(r, CounterVec::new(Opts::new(name, help), labels));
        let count =
            |name: &str, help: &str, labels: &[&str]| register(r, IntCounterVec::new(Opts::new(name, help), labels));
        let histogram = |name: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            register(r, HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
        };
        Self {
            db_size: gauge("litestream_db_size", "Bytes of the database file.", DB),
            wal_size: gauge("litestream_wal_size", "Bytes of the log that are synced.", DB),
            total_wal_bytes: counter("litestream_total_wal_bytes", "Bytes of log that became LTX files.", DB),
            txid: gauge("litestream_txid", "Newest local transaction ID.", DB),
            sync_count: counter("litestream_sync_count", "Looks at the log.", DB),
            sync_error_count: counter("litestream_sync_error_count", "Looks at the log that failed.", DB),
            sync_seconds: counter("litestream_sync_seconds", "Time spent on the log.", DB),
            disk_full: gauge("litestream_disk_full", "1 if the last sync found no space.", DB),
            verify_error_count: counter(
                "litestream_compaction_verify_error_count",
                "Compactions whose level was found to have gaps or overlaps.",
                DB,
            ),
            checkpoint_count: counter("litestream_checkpoint_count", "Checkpoints.", DB_MODE),
            checkpoint_error_count: counter("litestream_checkpoint_error_count", "Checkpoints that failed.", DB_MODE),
            checkpoint_seconds: counter("litestream_checkpoint_seconds", "Time spent on checkpoints.", DB_MODE),
            l0_files: gauge(
                "litestream_l0_retention_files_total",
                "Level-0 files by what retention last found about them.",
                &["db", "status"],
            ),
            operation_total: counter("litestream_replica_operation_total", "Storage requests.", OPERATION),
            operation_bytes: counter(
                "litestream_replica_operation_bytes",
                "Bytes moved to and from storage.",
                OPERATION,
            ),
            operation_seconds: histogram(
                "litestream_replica_operation_duration_seconds",
                "Time that storage requests took.",
                OPERATION,
                &REQUEST_BUCKETS,
            ),
            operation_errors: counter(
                "litestream_replica_operation_errors_total",
                "Storage requests that failed.",
                &["replica_type", "operation", "code"],
            ),
            scrapes: count("promhttp_metric_handler_requests_total", "Scrapes by HTTP status.", &["code"]),
            scrapes_in_flight: register(
                r,
                IntGauge::new("promhttp_metric_handler_requests_in_flight", "Scrapes being answered."),
            ),
            lag: gauge(
                "sqlite_replication_lag_seconds",
                "Age of the oldest commit that the replica does not have; 0 if it has all.",
                DB_REPLICA,
            ),
            last_success: gauge(
                "sqlite_replication_last_success_timestamp_seconds",
                "When the replica was last known to have every commit.",
                DB_REPLICA,
            ),
            replica_txid: gauge("sqlite_replication_replica_txid", "Newest transaction ID on the replica.", DB_REPLICA),
            pending_files: gauge(
                "sqlite_replication_pending_transactions",
                "Transaction IDs to be uploaded.",
                DB_REPLICA,
            ),
            replica_failing: gauge(
                "sqlite_replication_consecutive_errors",
                "Failures in a row of uploading, or of reading the log.",
                DB_REPLICA,
            ),
            wal_file_bytes: gauge("sqlite_replication_wal_bytes", "Bytes of the log, synced or not.", DB),
            wal_alarm: gauge(
                "sqlite_replication_wal_alarm",
                "1 while the log is longer than truncate-page-n allows and cannot be checkpointed.",
                DB,
            ),
            databases: gauge("sqlite_replication_databases", "Databases by state.", &["state"]),
            queue: gauge("sqlite_replication_waiting", "Steps that wait for their turn.", &["pool"]),
            requests: count(
                "sqlite_replication_requests_total",
                "Storage requests by outcome.",
                &["replica_type", "operation", "outcome"],
            ),
            upkeep_seconds: histogram(
                "sqlite_replication_compaction_seconds",
                "Time that writing one file of a level took; level 9 is snapshots.",
                &["level"],
                &UPKEEP_BUCKETS,
            ),
            upkeep_bytes: counter("sqlite_replication_compaction_bytes_total", "Bytes written by level.", &["level"]),
            virtual_memory_max: register(
                r,
                Gauge::new("process_virtual_memory_max_bytes", "Maximum amount of virtual memory available in bytes."),
            ),
            registry: {
                #[cfg(target_os = "linux")]
                {
                    let process = prometheus::process_collector::ProcessCollector::for_self();
                    // Only lacks on a system without `/proc`.
                    let _ = r.register(Box::new(process));
                }
                registry.clone()
            },
        }
    }

    /// The series of one database: they exist from now on.
    #[must_use]
    pub fn database(&self, path: &str, file_name: &str) -> DatabaseMetrics {
        let db = &[path];
        DatabaseMetrics {
            db_size: self.db_size.with_label_values(db),
            wal_size: self.wal_size.with_label_values(db),
            total_wal_bytes: self.total_wal_bytes.with_label_values(db),
            txid: self.txid.with_label_values(db),
            sync_count: self.sync_count.with_label_values(db),
            sync_error_count: self.sync_error_count.with_label_values(db),
            sync_seconds: self.sync_seconds.with_label_values(db),
            disk_full: self.disk_full.with_label_values(db),
            verify_error_count: self.verify_error_count.with_label_values(db),
            checkpoint_count: self.checkpoint_count.clone(),
            checkpoint_error_count: self.checkpoint_error_count.clone(),
            checkpoint_seconds: self.checkpoint_seconds.clone(),
            l0_files: self.l0_files.clone(),
            wal_file_bytes: self.wal_file_bytes.clone(),
            wal_alarm: self.wal_alarm.clone(),
            path: path.to_owned(),
            file_name: file_name.to_owned(),
        }
    }

    /// Drops the series of a database that is no longer managed; `last` if no other one has its file name.
    pub fn forget_database(&self, path: &str, file_name: &str, last: bool) {
        let db = &[path];
        for gauge in [&self.db_size, &self.wal_size, &self.txid, &self.disk_full, &self.wal_file_bytes, &self.wal_alarm]
        {
            let _ = gauge.remove_label_values(db);
        }
        for counter in [
            &self.total_wal_bytes,
            &self.sync_count,
            &self.sync_error_count,
            &self.sync_seconds,
            &self.verify_error_count,
        ] {
            let _ = counter.remove_label_values(db);
        }
        for counter in [&self.checkpoint_count, &self.checkpoint_error_count, &self.checkpoint_seconds] {
            let _ = counter.remove_label_values(&[path, CHECKPOINT_MODE]);
        }
        for status in L0_STATUSES.iter().filter(|_| last) {
            let _ = self.l0_files.remove_label_values(&[file_name, status]);
        }
    }

    /// Drops the series of one of its replicas.
    pub fn forget_replica(&self, path: &str, replica: &str) {
        for gauge in [&self.lag, &self.last_success, &self.replica_txid, &self.pending_files, &self.replica_failing] {
            let _ = gauge.remove_label_values(&[path, replica]);
        }
    }

    /// Sets what is only known when asked for.
    pub fn set_replica(&self, path: &str, replica: &str, now: &ReplicaGauges) {
        let labels = &[path, replica];
        self.lag.with_label_values(labels).set(now.lag.as_secs_f64());
        if let Some(at) = now.last_success_seconds {
            self.last_success.with_label_values(labels).set(at);
        }
        self.replica_txid.with_label_values(labels).set(now.txid as f64);
        self.pending_files.with_label_values(labels).set(now.pending as f64);
        self.replica_failing.with_label_values(labels).set(f64::from(now.errors));
    }

    /// Sets the number of databases in each state.
    pub fn set_databases(&self, states: &[(&str, usize)]) {
        for (state, count) in states {
            self.databases.with_label_values(&[*state]).set(*count as f64);
        }
    }

    /// Sets how many steps wait for a place in a pool.
    pub fn set_waiting(&self, pool: &str, count: usize) {
        self.queue.with_label_values(&[pool]).set(count as f64);
    }

    /// A file of a level was written.
    pub fn wrote_level(&self, level: Level, took: Duration, bytes: u64) {
        let level = level.get().to_string();
        self.upkeep_seconds.with_label_values(&[level.as_str()]).observe(took.as_secs_f64());
        self.upkeep_bytes.with_label_values(&[level.as_str()]).inc_by(bytes as f64);
    }

    /// A request to storage ended. Directories have no `litestream_replica_*` series in Litestream
    /// either.
    pub fn storage_request(&self, request: &StorageRequest<'_>) {
        let StorageRequest { kind, operation, objects, bytes, took, error } = *request;
        let outcome = error.unwrap_or("ok");
        self.requests.with_label_values(&[kind, operation, outcome]).inc();
        if kind == "file" {
            return;
        }
        let labels = &[kind, operation];
        self.operation_total.with_label_values(labels).inc_by(objects as f64);
        if bytes > 0 {
            self.operation_bytes.with_label_values(labels).inc_by(bytes as f64);
        }
        self.operation_seconds.with_label_values(labels).observe(took.as_secs_f64());
        if let Some(code) = error {
            self.operation_errors.with_label_values(&[kind, operation, code]).inc();
        }
    }

    /// Bytes of an object went by, of a request that is counted on its own.
    pub fn storage_bytes(&self, kind: &str, operation: &str, bytes: u64) {
        if kind != "file" {
            self.operation_bytes.with_label_values(&[kind, operation]).inc_by(bytes as f64);
        }
    }

    /// Begins answering a scrape.
    #[must_use]
    pub fn scrape(&self) -> Scrape<'_> {
        for code in ["200", "500", "503"] {
            self.scrapes.with_label_values(&[code]);
        }
        self.scrapes_in_flight.inc();
        Scrape { metrics: self }
    }

    /// The limit of this process's address space, infinite if there is none.
    pub fn set_virtual_memory_max(&self, bytes: Option<u64>) {
        self.virtual_memory_max.set(bytes.map_or(u64::MAX as f64, |bytes| bytes as f64));
    }
}

/// Reference checkpoints are PASSIVE or TRUNCATE; ours only ever PASSIVE.
const CHECKPOINT_MODE: &str = "PASSIVE";
const L0_STATUSES: [&str; 3] = ["eligible", "not_compacted", "too_recent"];

/// A scrape being answered.
#[derive(Debug)]
pub struct Scrape<'a> {
    metrics: &'a Metrics,
}

impl Scrape<'_> {
    /// The text format, version 0.0.4.
    ///
    /// # Errors
    /// A family that cannot be written, in words.
    pub fn render(&self) -> Result<String, String> {
        let mut out = Vec::new();
        let rendered = TextEncoder::new().encode(&self.metrics.registry.gather(), &mut out);
        let code = if rendered.is_ok() { "200" } else { "500" };
        self.metrics.scrapes.with_label_values(&[code]).inc();
        rendered.map_err(|err| err.to_string())?;
        String::from_utf8(out).map_err(|err| err.to_string())
    }
}

impl Drop for Scrape<'_> {
    fn drop(&mut self) {
        self.metrics.scrapes_in_flight.dec();
    }
}

/// How a replica stands.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReplicaGauges {
    /// Age of the oldest commit it lacks.
    pub lag: Duration,
    /// When it was last known to lack none, in seconds since 1970.
    pub last_success_seconds: Option<f64>,
    /// Its newest TXID.
    pub txid: u64,
    /// TXIDs to be uploaded.
    pub pending: u64,
    /// Failures in a row.
    pub errors: u32,
}

/// One request to storage that has ended.
#[derive(Debug, Clone, Copy)]
pub struct StorageRequest<'a> {
    /// `s3`, `file`, …
    pub kind: &'a str,
    /// `PUT`, `GET`, `LIST`, `DELETE`.
    pub operation: &'a str,
    /// Objects it was about.
    pub objects: u64,
    /// Bytes of objects moved.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// What kind of failure, if it failed.
    pub error: Option<&'a str>,
}

/// What one look at the log found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SyncFigures {
    /// Bytes of the database file.
    pub db_bytes: u64,
    /// Bytes of log that are synced.
    pub wal_synced: u64,
    /// Bytes of log.
    pub wal_bytes: u64,
    /// Newest local TXID.
    pub txid: u64,
    /// Bytes of log that became LTX files in this pass.
    pub new_wal_bytes: u64,
    /// Checkpoints in this pass.
    pub checkpoints: u64,
    /// Checkpoints that failed.
    pub checkpoint_errors: u64,
    /// Time they took.
    pub checkpoint_time: Duration,
    /// The log is longer than it should be and cannot be checkpointed.
    pub alarm: bool,
}

/// The series of one database.
#[derive(Debug)]
pub struct DatabaseMetrics {
    path: String,
    file_name: String,
    db_size: Gauge,
    wal_size: Gauge,
    total_wal_bytes: Counter,
    txid: Gauge,
    sync_count: Counter,
    sync_error_count: Counter,
    sync_seconds: Counter,
    disk_full: Gauge,
    verify_error_count: Counter,
    checkpoint_count: CounterVec,
    checkpoint_error_count: CounterVec,
    checkpoint_seconds: CounterVec,
    l0_files: GaugeVec,
    wal_file_bytes: GaugeVec,
    wal_alarm: GaugeVec,
}

impl DatabaseMetrics {
    /// A look at the log that found nothing new.
    pub fn looked(&self, took: Duration) {
        self.sync_count.inc();
        self.sync_seconds.inc_by(took.as_secs_f64());
    }

    /// A pass over the log.
    pub fn synced(&self, took: Duration, found: &SyncFigures) {
        self.looked(took);
        self.disk_full.set(0.0);
        self.db_size.set(found.db_bytes as f64);
        self.wal_size.set(found.wal_synced as f64);
        self.txid.set(found.txid as f64);
        self.total_wal_bytes.inc_by(found.new_wal_bytes as f64);
        self.wal_file_bytes.with_label_values(&[&self.path]).set(found.wal_bytes as f64);
        self.wal_alarm.with_label_values(&[&self.path]).set(f64::from(u8::from(found.alarm)));
        let mode = &[self.path.as_str(), CHECKPOINT_MODE];
        if found.checkpoints > 0 {
            self.checkpoint_count.with_label_values(mode).inc_by(found.checkpoints as f64);
            self.checkpoint_seconds.with_label_values(mode).inc_by(found.checkpoint_time.as_secs_f64());
        }
        if found.checkpoint_errors > 0 {
            self.checkpoint_error_count.with_label_values(mode).inc_by(found.checkpoint_errors as f64);
        }
    }

    /// A pass that had no database to read.
    pub fn no_database(&self, took: Duration) {
        self.looked(took);
    }

    /// A pass that failed.
    pub fn failed(&self, took: Duration, disk_full: bool) {
        self.looked(took);
        self.sync_error_count.inc();
        self.disk_full.set(f64::from(u8::from(disk_full)));
    }

    /// A level was found damaged after a compaction.
    pub fn verify_error(&self) {
        self.verify_error_count.inc();
    }

    /// What retention found in level 0.
    pub fn l0_files(&self, eligible: usize, not_compacted: usize, too_recent: usize) {
        for (status, count) in L0_STATUSES.iter().zip([eligible, not_compacted, too_recent]) {
            self.l0_files.with_label_values(&[self.file_name.as_str(), status]).set(count as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(metrics: &Metrics) -> Vec<String> {
        let text = metrics.scrape().render().unwrap();
        let series = text.lines().filter(|line| line.starts_with("litestream_"));
        series.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_database_has_its_series_from_the_start_and_those_of_events_after_the_first() {
        let metrics = Metrics::new();
        assert!(names(&metrics).is_empty());
        let db = metrics.database("/x/app.db", "app.db");
        let first = [
            "compaction_verify_error_count",
            "db_size",
            "disk_full",
            "sync_count",
            "sync_error_count",
            "sync_seconds",
            "total_wal_bytes",
            "txid",
            "wal_size",
        ];
        let first: Vec<String> = first.iter().map(|name| format!("litestream_{name}{{db=\"/x/app.db\"}}")).collect();
        assert_eq!(names(&metrics), first);
        db.synced(Duration::from_millis(1), &SyncFigures { checkpoints: 1, ..SyncFigures::default() });
        db.l0_files(1, 2, 3);
        let all = names(&metrics);
        assert!(all.contains(&"litestream_checkpoint_count{db=\"/x/app.db\",mode=\"PASSIVE\"}".to_owned()));
        assert!(!all.iter().any(|name| name.starts_with("litestream_checkpoint_error_count")));
        assert!(all.contains(&"litestream_l0_retention_files_total{db=\"app.db\",status=\"too_recent\"}".to_owned()));
    }

    #[test]
    fn a_database_that_is_gone_leaves_nothing_behind() {
        let metrics = Metrics::new();
        let db = metrics.database("/x/app.db", "app.db");
        db.synced(Duration::ZERO, &SyncFigures { checkpoints: 1, checkpoint_errors: 1, ..SyncFigures::default() });
        db.failed(Duration::ZERO, true);
        db.l0_files(0, 0, 0);
        metrics.set_replica(
            "/x/app.db",
            "file",
            &ReplicaGauges { last_success_seconds: Some(1.0), ..ReplicaGauges::default() },
        );
        metrics.forget_database("/x/app.db", "app.db", true);
        metrics.forget_replica("/x/app.db", "file");
        let text = metrics.scrape().render().unwrap();
        assert!(!text.contains("app.db"), "{text}");
    }

    #[test]
    fn directories_have_none_of_the_references_request_series() {
        let metrics = Metrics::new();
        let mut request =
            StorageRequest { kind: "file", operation: "PUT", objects: 1, bytes: 9, took: Duration::ZERO, error: None };
        metrics.storage_request(&request);
        assert!(names(&metrics).is_empty());
        request.kind = "s3";
        metrics.storage_request(&request);
        let all = names(&metrics);
        assert!(
            all.contains(&"litestream_replica_operation_bytes{operation=\"PUT\",replica_type=\"s3\"}".to_owned()),
            "{all:?}"
        );
    }
}
