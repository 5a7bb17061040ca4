//! The configuration exactly as written: one struct per section, every key of `spec: config` §5.
//! `Option` is "may be absent"; plain fields are those whose null means empty or zero.

use jiff::SignedDuration;

use super::decode::{Decode, Decoder, Section, decode_section};
use super::defaults;
use super::units::parse_byte_size;
use super::yaml::Node;
use crate::settings::{AgeKeys, ByteSize, ReplicaKeys, Secret, SharedKeys};

/// Ties the keys of a section to its fields. `inline` fields share the section's mapping.
macro_rules! section {
    (@keys $inline:ident) => { SharedKeys::keys() };
    ($ty:ident as $go:literal, list $list:literal { $($key:literal => $field:ident),* $(,)? } $(inline $inline:ident)?) => {
        impl Section for $ty {
            fn set(&mut self, key: &str, value: &Node, d: &mut Decoder) -> bool {
                match key {
                    $($key => self.$field.decode(value, d),)*
                    _ => {
                        $(return self.$inline.set(key, value, d);)?
                        #[allow(unreachable_code)]
                        return false;
                    }
                }
                true
            }

            fn keys() -> Vec<&'static str> {
                #[allow(unused_mut, reason = "only some sections share keys")]
                let mut keys = vec![$($key),*];
                $(keys.extend(section!(@keys $inline));)?
                keys
            }
        }

        impl Decode for $ty {
            const GO: &'static str = $go;
            const GO_LIST: &'static str = $list;

            fn decode(&mut self, node: &Node, d: &mut Decoder) {
                decode_section(self, node, $go, d);
            }
        }
    };
}

/// The `snapshot` block is decoded alone and first: its type errors hide all others.
#[derive(Debug, Default)]
pub(super) struct SnapshotOnly {
    pub(super) snapshot: Option<RawSnapshot>,
}
section!(SnapshotOnly as "struct { Snapshot *main.SnapshotConfig \"yaml:\\\"snapshot\\\"\" }", list "" {
    "snapshot" => snapshot,
});

/// The whole file.
#[derive(Debug)]
pub(super) struct RawConfig {
    pub(super) addr: String,
    pub(super) mcp_addr: String,
    pub(super) mcp: RawMcp,
    pub(super) exec: String,
    pub(super) socket: RawSocket,
    pub(super) logging: RawLogging,
    pub(super) levels: Vec<Option<RawLevel>>,
    pub(super) snapshot: RawSnapshot,
    pub(super) retention: RawRetention,
    pub(super) validation: RawValidation,
    pub(super) l0_retention: Option<SignedDuration>,
    pub(super) l0_retention_check_interval: Option<SignedDuration>,
    pub(super) verify_compaction: bool,
    pub(super) heartbeat_url: String,
    pub(super) heartbeat_interval: Option<SignedDuration>,
    pub(super) shutdown_sync_timeout: Option<SignedDuration>,
    pub(super) shutdown_sync_interval: Option<SignedDuration>,
    pub(super) dbs: Vec<Option<RawDb>>,
    pub(super) replica_defaults: SharedKeys,
}
section!(RawConfig as "main.Config", list "" {
    "addr" => addr, "mcp-addr" => mcp_addr, "mcp" => mcp, "exec" => exec, "socket" => socket, "logging" => logging,
    "levels" => levels, "snapshot" => snapshot, "retention" => retention, "validation" => validation,
    "l0-retention" => l0_retention, "l0-retention-check-interval" => l0_retention_check_interval,
    "verify-compaction" => verify_compaction, "heartbeat-url" => heartbeat_url,
    "heartbeat-interval" => heartbeat_interval, "shutdown-sync-timeout" => shutdown_sync_timeout,
    "shutdown-sync-interval" => shutdown_sync_interval, "dbs" => dbs,
} inline replica_defaults);

/// Not derived: a document is decoded over these values.
impl Default for RawConfig {
    fn default() -> Self {
        let level = |interval| Some(RawLevel { interval });
        Self {
            addr: String::new(),
            mcp_addr: String::new(),
            mcp: RawMcp::default(),
            exec: String::new(),
            socket: RawSocket {
                enabled: false,
                path: defaults::SOCKET_PATH.to_owned(),
                permissions: defaults::SOCKET_PERMISSIONS,
            },
            logging: RawLogging::default(),
            levels: defaults::LEVELS.into_iter().map(level).collect(),
            snapshot: RawSnapshot::default(),
            retention: RawRetention::default(),
            validation: RawValidation::default(),
            l0_retention: None,
            l0_retention_check_interval: None,
            verify_compaction: false,
            heartbeat_url: String::new(),
            heartbeat_interval: None,
            shutdown_sync_timeout: None,
            shutdown_sync_interval: None,
            dbs: Vec::new(),
            replica_defaults: SharedKeys::default(),
        }
    }
}

/// `socket:`
#[derive(Debug, Default, Clone)]
pub(super) struct RawSocket {
    pub(super) enabled: bool,
    pub(super) path: String,
    pub(super) permissions: u32,
}
section!(RawSocket as "litestream.SocketConfig", list "" {
    "enabled" => enabled, "path" => path, "permissions" => permissions,
});

/// `mcp:`, which Litestream does not have.
#[derive(Debug, Default, Clone)]
pub(super) struct RawMcp {
    pub(super) token: Secret,
    pub(super) allow_changes: bool,
    pub(super) paths: Vec<String>,
}
section!(RawMcp as "mcp", list "" {
    "token" => token, "allow-changes" => allow_changes, "paths" => paths,
});

/// `logging:`
#[derive(Debug, Default, Clone)]
pub(super) struct RawLogging {
    pub(super) level: String,
    pub(super) kind: String,
    pub(super) stderr: bool,
    pub(super) source: bool,
}
section!(RawLogging as "internal.LoggingConfig", list "" {
    "level" => level, "type" => kind, "stderr" => stderr, "source" => source,
});

/// One entry of `levels:`
#[derive(Debug, Default, Clone)]
pub(super) struct RawLevel {
    pub(super) interval: SignedDuration,
}
section!(RawLevel as "main.CompactionLevelConfig", list "[]*main.CompactionLevelConfig" {
    "interval" => interval,
});

/// `snapshot:`, global or of one database.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct RawSnapshot {
    pub(super) interval: Option<SignedDuration>,
    pub(super) retention: Option<SignedDuration>,
}
section!(RawSnapshot as "main.SnapshotConfig", list "" {
    "interval" => interval, "retention" => retention,
});

/// `retention:`
#[derive(Debug, Default, Clone)]
pub(super) struct RawRetention {
    pub(super) enabled: Option<bool>,
}
section!(RawRetention as "main.RetentionConfig", list "" { "enabled" => enabled });

/// `validation:`
#[derive(Debug, Default, Clone)]
pub(super) struct RawValidation {
    pub(super) interval: Option<SignedDuration>,
}
section!(RawValidation as "main.ValidationConfig", list "" { "interval" => interval });

/// One entry of `dbs:`
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct RawDb {
    pub(super) path: String,
    pub(super) dir: String,
    pub(super) pattern: String,
    pub(super) recursive: bool,
    pub(super) watch: bool,
    pub(super) meta_path: Option<String>,
    pub(super) meta_dir: Option<String>,
    pub(super) monitor_interval: Option<SignedDuration>,
    pub(super) checkpoint_interval: Option<SignedDuration>,
    pub(super) busy_timeout: Option<SignedDuration>,
    pub(super) min_checkpoint_page_count: Option<isize>,
    pub(super) truncate_page_n: Option<isize>,
    pub(super) max_sync_wal_bytes: Option<i64>,
    pub(super) restore_if_db_not_exists: bool,
    pub(super) snapshot: RawSnapshot,
    /// This and the next: not in Litestream, which has them for all databases together only.
    pub(super) heartbeat_url: String,
    pub(super) heartbeat_interval: Option<SignedDuration>,
    pub(super) replica: Option<ReplicaKeys>,
    pub(super) replicas: Vec<Option<ReplicaKeys>>,
}
section!(RawDb as "main.DBConfig", list "[]*main.DBConfig" {
    "path" => path, "dir" => dir, "pattern" => pattern, "recursive" => recursive, "watch" => watch,
    "meta-path" => meta_path, "meta-dir" => meta_dir, "monitor-interval" => monitor_interval,
    "checkpoint-interval" => checkpoint_interval, "busy-timeout" => busy_timeout,
    "min-checkpoint-page-count" => min_checkpoint_page_count, "truncate-page-n" => truncate_page_n,
    "max-sync-wal-bytes" => max_sync_wal_bytes, "restore-if-db-not-exists" => restore_if_db_not_exists,
    "snapshot" => snapshot, "heartbeat-url" => heartbeat_url, "heartbeat-interval" => heartbeat_interval,
    "replica" => replica, "replicas" => replicas,
});

section!(ReplicaKeys as "main.ReplicaConfig", list "[]*main.ReplicaConfig" {
    "type" => kind, "name" => name, "path" => path, "url" => url,
} inline settings);

section!(SharedKeys as "main.ReplicaSettings", list "" {
    "sync-interval" => sync_interval, "max-sync-ltx-files" => max_sync_ltx_files, "auto-recover" => auto_recover,
    "validation-interval" => validation_interval, "access-key-id" => access_key_id,
    "secret-access-key" => secret_access_key, "region" => region, "bucket" => bucket, "endpoint" => endpoint,
    "force-path-style" => force_path_style, "sign-payload" => sign_payload,
    "sign-accept-encoding" => sign_accept_encoding, "require-content-md5" => require_content_md5,
    "skip-verify" => skip_verify, "storage-class" => storage_class, "part-size" => part_size,
    "concurrency" => concurrency, "sse-customer-algorithm" => sse_customer_algorithm,
    "sse-customer-key" => sse_customer_key, "sse-customer-key-path" => sse_customer_key_path,
    "sse-kms-key-id" => sse_kms_key_id, "account-name" => account_name, "account-key" => account_key,
    "sas-token" => sas_token, "host" => host, "user" => user, "password" => password, "key-path" => key_path,
    "concurrent-writes" => concurrent_writes, "host-key" => host_key, "webdav-url" => webdav_url,
    "webdav-username" => webdav_username, "webdav-password" => webdav_password, "username" => username,
    "token" => token, "jwt" => jwt, "seed" => seed, "creds" => creds, "nkey" => nkey, "tls" => tls,
    "root-cas" => root_cas, "client-cert" => client_cert, "client-key" => client_key,
    "max-reconnects" => max_reconnects, "reconnect-wait" => reconnect_wait, "timeout" => timeout, "age" => age,
});

/// Every key, with the section it belongs to; the top level is "".
pub(super) fn known_keys() -> [(&'static str, Vec<&'static str>); 7] {
    [
        ("dbs[].replica", ReplicaKeys::keys()),
        ("dbs[]", RawDb::keys()),
        ("", RawConfig::keys()),
        ("logging", RawLogging::keys()),
        ("socket", RawSocket::keys()),
        ("mcp", RawMcp::keys()),
        ("snapshot", RawSnapshot::keys()),
    ]
}

section!(AgeKeys as "struct { Identities []string \"yaml:\\\"identities\\\"\"; Recipients []string \"yaml:\\\"recipients\\\"\" }",
    list "" { "identities" => identities, "recipients" => recipients });

impl Decode for Secret {
    const GO: &'static str = "string";

    fn decode(&mut self, node: &Node, d: &mut Decoder) {
        let mut text = self.expose().to_owned();
        text.decode(node, d);
        *self = Self::new(text);
    }
}

impl Decode for ByteSize {
    const GO: &'static str = "main.ByteSize";

    fn decode(&mut self, node: &Node, d: &mut Decoder) {
        let mut text = String::new();
        let before = d.errors.len();
        text.decode(node, d);
        if d.errors.len() > before {
            return;
        }
        match parse_byte_size(&text) {
            Ok(bytes) => *self = Self(bytes),
            Err(message) => {
                d.fatal.get_or_insert(message);
            }
        }
    }
}
