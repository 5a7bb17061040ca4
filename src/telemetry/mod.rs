//! What the program says about itself while it runs.

mod format;
mod log;
mod metrics;
mod zone;

pub use format::Shape;
pub use log::{LogSettings, LogStream, duration, init, parse_level};
pub use metrics::{DatabaseMetrics, Metrics, ReplicaGauges, Scrape, StorageRequest, SyncFigures};
pub use zone::local_zone;
