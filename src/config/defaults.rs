//! Every built-in default but those of replicas (`settings::defaults`), once (`spec: config` §5).

use jiff::SignedDuration;

/// Where the configuration is looked for when neither flag nor environment names a file.
pub const CONFIG_PATH: &str = if cfg!(windows) { r"C:\Litestream\litestream.yml" } else { "/etc/litestream.yml" };

/// The control socket.
pub const SOCKET_PATH: &str = "/var/run/litestream.sock";
/// Permission bits of the control socket.
pub const SOCKET_PERMISSIONS: u32 = 0o600;

/// Intervals of compaction levels 1, 2, 3.
pub const LEVELS: [SignedDuration; 3] =
    [SignedDuration::from_secs(30), SignedDuration::from_secs(300), SignedDuration::from_secs(3600)];
/// Time between snapshots.
pub const SNAPSHOT_INTERVAL: SignedDuration = SignedDuration::from_hours(24);
/// How long snapshots and what follows them are kept.
pub const SNAPSHOT_RETENTION: SignedDuration = SignedDuration::from_hours(24);
/// How long level-0 files are kept after compaction.
pub const L0_RETENTION: SignedDuration = SignedDuration::from_secs(300);
/// How often that is looked at.
pub const L0_RETENTION_CHECK_INTERVAL: SignedDuration = SignedDuration::from_secs(15);
/// Time between heartbeats.
pub const HEARTBEAT_INTERVAL: SignedDuration = SignedDuration::from_secs(300);
/// Shortest heartbeat interval accepted.
pub const HEARTBEAT_INTERVAL_MIN: SignedDuration = SignedDuration::from_secs(60);
/// How long the final sync is retried.
pub const SHUTDOWN_SYNC_TIMEOUT: SignedDuration = SignedDuration::from_secs(30);
/// Pause between attempts of the final sync.
pub const SHUTDOWN_SYNC_INTERVAL: SignedDuration = SignedDuration::from_millis(500);

/// How often the WAL is looked at.
pub const MONITOR_INTERVAL: SignedDuration = SignedDuration::from_secs(1);
/// Time between passive checkpoints.
pub const CHECKPOINT_INTERVAL: SignedDuration = SignedDuration::from_secs(60);
/// SQLite's busy timeout on our connections.
pub const BUSY_TIMEOUT: SignedDuration = SignedDuration::from_secs(1);
/// WAL pages from which a passive checkpoint is tried.
pub const MIN_CHECKPOINT_PAGE_COUNT: i64 = 1000;
/// WAL pages from which a truncating checkpoint is forced.
pub const TRUNCATE_PAGE_N: i64 = 121_359;
/// WAL bytes taken per sync pass.
pub const MAX_SYNC_WAL_BYTES: i64 = 64 << 20;
