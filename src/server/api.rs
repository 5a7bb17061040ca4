//! What is said over the control socket (`spec: control` §1), by both sides. Field names and their
//! order are Litestream's.

use serde::{Deserialize, Serialize};

use crate::telemetry::local_zone;
use crate::types::Timestamp;

/// Whether a number is left out of a request.
fn is_zero(n: &i64) -> bool {
    *n == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this form")]
fn is_false(b: &bool) -> bool {
    !*b
}

/// `POST /start`, `/stop`, `/unregister`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PathRequest {
    /// The database file.
    pub path: String,
    /// Seconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
}

/// `POST /sync`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SyncRequest {
    /// The database file.
    pub path: String,
    /// Also wait for the upload.
    #[serde(skip_serializing_if = "is_false")]
    pub wait: bool,
    /// Seconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
}

/// `POST /register`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RegisterRequest {
    /// The database file.
    pub path: String,
    /// Where it goes.
    pub replica_url: String,
}

/// `GET /info`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Info {
    /// Without `v`.
    pub version: String,
    /// Of the daemon.
    pub pid: i64,
    /// Whole seconds.
    pub uptime_seconds: i64,
    /// RFC 3339.
    pub started_at: String,
    /// Stopped ones too.
    pub database_count: i64,
}

/// `GET /list`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct List {
    /// In the order they came.
    pub databases: Vec<ListEntry>,
}

/// One database of a [`List`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListEntry {
    /// The database file.
    pub path: String,
    /// `replicating`, `open`, `stopped`.
    pub status: String,
    /// RFC 3339; absent until the first upload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sync_at: Option<String>,
}

/// `GET /txid`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TxidReply {
    /// 0 if there is none.
    pub txid: u64,
}

/// `POST /start`, `/stop`, `/unregister`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChangeReply {
    /// What became of it.
    pub status: String,
    /// Expanded.
    pub path: String,
    /// 0 if there is none.
    pub txid: u64,
}

/// `POST /register`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RegisterReply {
    /// `registered`, `already_registered`.
    pub status: String,
    /// Expanded.
    pub path: String,
}

/// `POST /sync`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SyncReply {
    /// `synced`, `synced_local`, `no_change`.
    pub status: String,
    /// Expanded.
    pub path: String,
    /// Newest local one.
    pub txid: u64,
    /// Newest one known to be on the replica.
    pub replicated_txid: u64,
}

/// `GET /lag`: how far replicas are behind. Not in Litestream.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lags {
    /// Of every database that is not stopped.
    pub replicas: Vec<Lag>,
}

/// How far one replica is behind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lag {
    /// The database file.
    pub path: String,
    /// Name of the replica.
    pub replica: String,
    /// `replicating`, `open`.
    pub status: String,
    /// Newest local one.
    pub txid: u64,
    /// Newest one on the replica.
    pub replica_txid: u64,
    /// Age of the oldest commit that the replica lacks.
    pub lag_seconds: f64,
    /// Something that a restore needs is known to be gone from it.
    #[serde(skip_serializing_if = "is_false")]
    pub lost: bool,
    /// What keeps it from being written to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Seconds until that is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_in_seconds: Option<f64>,
    /// When the replica was last known to have every commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sync_at: Option<String>,
    /// What is wrong with the storage itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// What is said of a storage that replaces objects whatever it is told.
pub const UNGUARDED: &str =
    "this storage cannot create objects without replacing others: a second writer is not noticed there";

/// Any failure.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorReply {
    /// In words.
    pub error: String,
    /// More of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<serde_json::Value>,
}

/// `GET /debug/sync-status`
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct SyncStatusReply {
    pub(super) databases: Vec<SyncStatus>,
}

/// What one database does. Everything but path and `active` is left out when empty.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct SyncStatus {
    pub(super) path: String,
    pub(super) active: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) operation: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) phase: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) updated_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) elapsed_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) txid: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) wal_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_synced_wal_offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// One line of JSON as Go writes it.
pub(super) fn line<T: Serialize>(value: &T) -> String {
    let mut text = escape(&serde_json::to_string(value).unwrap_or_else(|_| "{}".to_owned()));
    text.push('\n');
    text
}

/// Escapes what Go escapes in JSON: `<`, `>`, `&` and the two line separators. They stand only
/// inside strings, so replacing them anywhere is safe.
#[must_use]
pub fn escape(json: &str) -> String {
    let mut out = String::with_capacity(json.len() + 1);
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// RFC 3339 with as many digits as there are, in local time.
pub(super) fn local_time(at: Timestamp) -> String {
    let Ok(at) = jiff::Timestamp::from_millisecond(at.millis()) else { return String::new() };
    let at = at.to_zoned(local_zone());
    let fraction = format!(".{:03}", at.subsec_nanosecond() / 1_000_000);
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    let offset = if at.offset().seconds() == 0 { "Z".to_owned() } else { at.strftime("%:z").to_string() };
    format!("{}{fraction}{offset}", at.strftime("%Y-%m-%dT%H:%M:%S"))
}
