//! What the engine says about itself while it runs: every metric, and how durations are logged. Lines are shaped
//! by the program.

mod metrics;

use std::time::Duration;

pub use metrics::{DatabaseMetrics, Metrics, ReplicaGauges, Scrape, StorageRequest, SyncFigures};

/// A duration as an attribute value of a log record: 128-bit integers are nanoseconds, and nothing else.
#[must_use]
pub fn duration(d: Duration) -> i128 {
    i128::try_from(d.as_nanos()).unwrap_or(i128::MAX)
}
