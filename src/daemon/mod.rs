//! What makes a daemon of a store: settings become what the store works on, directories are watched for databases
//! that come and go, and a heartbeat tells that all is well.

mod build;
pub mod heartbeat;
mod http_get;
mod watcher;

pub use build::{database, shutdown, upkeep};
pub use watcher::DirWatcher;
