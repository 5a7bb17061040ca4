//! Built-in defaults of replicas, once (`spec: config` §5).

use std::time::Duration;

use jiff::SignedDuration;

/// Time between uploads.
pub(super) const SYNC_INTERVAL: SignedDuration = SignedDuration::from_secs(1);
/// Level-0 uploads per background pass.
pub(super) const MAX_SYNC_LTX_FILES: i64 = 256;

/// The NATS server where none is named.
pub(super) const NATS_URL: &str = "nats://127.0.0.1:4222";
/// Pause between connection attempts to NATS.
pub(super) const NATS_RECONNECT_WAIT: SignedDuration = SignedDuration::from_secs(2);
/// How long connecting to NATS may take.
pub(super) const NATS_TIMEOUT: SignedDuration = SignedDuration::from_secs(10);

/// `d` without its sign, for settings that validation has found positive.
#[must_use]
pub fn unsigned(d: SignedDuration) -> Duration {
    Duration::try_from(d).unwrap_or(Duration::ZERO)
}

/// A duration that can be switched off by zero or less.
#[must_use]
pub fn positive(d: SignedDuration) -> Option<Duration> {
    if d.is_positive() { Duration::try_from(d).ok() } else { None }
}
