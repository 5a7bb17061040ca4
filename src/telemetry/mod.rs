//! What the program says about itself while it runs.

mod format;
mod log;
mod zone;

pub use format::Shape;
pub use litestream_engine::telemetry::{
    DatabaseMetrics, Metrics, ReplicaGauges, Scrape, StorageRequest, SyncFigures, duration,
};
pub use log::{LogSettings, LogStream, init, parse_level};
pub use zone::local_zone;
