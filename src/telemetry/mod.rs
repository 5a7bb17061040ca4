//! What the program says about itself while it runs.

mod format;
mod log;

pub use format::Shape;
pub use log::{LogSettings, LogStream, duration, init, parse_level};
