//! The keys of a replica as they are written, in a configuration file or by a program: every key of
//! `spec: config` §5 that a replica has. `Option` is "may be absent"; plain fields are those whose absence means
//! empty or zero. What they mean together with URL and environment is said by [`ReplicaKeys::resolve`].

use jiff::SignedDuration;

/// `replica:` or the one entry of `replicas:`
#[derive(Debug, Default, Clone, PartialEq)]
pub struct ReplicaKeys {
    /// `type`
    pub kind: String,
    /// `name`, which names nothing any more
    pub name: String,
    /// `path`
    pub path: String,
    /// `url`
    pub url: String,
    /// The keys that a replica shares with the top level.
    pub settings: SharedKeys,
}

/// Keys that a replica and the top level share; see [`Self::inherit`].
#[derive(Debug, Default, Clone, PartialEq)]
pub struct SharedKeys {
    /// `sync-interval`
    pub sync_interval: Option<SignedDuration>,
    /// `max-sync-ltx-files`
    pub max_sync_ltx_files: Option<isize>,
    /// `auto-recover`
    pub auto_recover: Option<bool>,
    /// `validation-interval`
    pub validation_interval: Option<SignedDuration>,
    /// `access-key-id`
    pub access_key_id: Secret,
    /// `secret-access-key`
    pub secret_access_key: Secret,
    /// `region`
    pub region: String,
    /// `bucket`
    pub bucket: String,
    /// `endpoint`
    pub endpoint: String,
    /// `force-path-style`
    pub force_path_style: Option<bool>,
    /// `sign-payload`
    pub sign_payload: Option<bool>,
    /// `sign-accept-encoding`
    pub sign_accept_encoding: Option<bool>,
    /// `require-content-md5`
    pub require_content_md5: Option<bool>,
    /// `skip-verify`
    pub skip_verify: bool,
    /// `storage-class`
    pub storage_class: String,
    /// `part-size`
    pub part_size: Option<ByteSize>,
    /// `concurrency`
    pub concurrency: Option<isize>,
    /// `sse-customer-algorithm`
    pub sse_customer_algorithm: String,
    /// `sse-customer-key`
    pub sse_customer_key: Secret,
    /// `sse-customer-key-path`
    pub sse_customer_key_path: String,
    /// `sse-kms-key-id`
    pub sse_kms_key_id: String,
    /// `account-name`
    pub account_name: String,
    /// `account-key`
    pub account_key: Secret,
    /// `sas-token`
    pub sas_token: Secret,
    /// `host`
    pub host: String,
    /// `user`
    pub user: String,
    /// `password`
    pub password: Secret,
    /// `key-path`
    pub key_path: String,
    /// `concurrent-writes`
    pub concurrent_writes: Option<bool>,
    /// `host-key`
    pub host_key: String,
    /// `webdav-url`
    pub webdav_url: String,
    /// `webdav-username`
    pub webdav_username: String,
    /// `webdav-password`
    pub webdav_password: Secret,
    /// `username`
    pub username: String,
    /// `token`
    pub token: Secret,
    /// `jwt`
    pub jwt: Secret,
    /// `seed`
    pub seed: Secret,
    /// `creds`
    pub creds: String,
    /// `nkey`
    pub nkey: Secret,
    /// `tls`
    pub tls: Option<bool>,
    /// `root-cas`
    pub root_cas: Vec<String>,
    /// `client-cert`
    pub client_cert: String,
    /// `client-key`
    pub client_key: String,
    /// `max-reconnects`
    pub max_reconnects: Option<isize>,
    /// `reconnect-wait`
    pub reconnect_wait: Option<SignedDuration>,
    /// `timeout`
    pub timeout: Option<SignedDuration>,
    /// `age`
    pub age: AgeKeys,
}

impl SharedKeys {
    /// Fills in what this replica leaves open from the top level (`spec: config` §6). An empty
    /// string or list counts as left open; `part-size`, `concurrency`, `host-key` and the WebDAV
    /// keys are not inherited.
    pub fn inherit(&mut self, top: &Self) {
        macro_rules! optional { ($($f:ident)*) => {$( if self.$f.is_none() { self.$f = top.$f; } )*}; }
        macro_rules! text { ($($f:ident)*) => {$( if self.$f.is_empty() { self.$f.clone_from(&top.$f); } )*}; }
        optional!(sync_interval max_sync_ltx_files auto_recover validation_interval force_path_style sign_payload
            sign_accept_encoding require_content_md5 concurrent_writes tls max_reconnects reconnect_wait timeout);
        text!(access_key_id secret_access_key region bucket endpoint storage_class sse_customer_algorithm
            sse_customer_key sse_customer_key_path sse_kms_key_id account_name account_key sas_token host user
            password key_path username token jwt seed creds nkey root_cas client_cert client_key);
        self.skip_verify |= top.skip_verify;
        if self.age.identities.is_empty() {
            self.age.identities.clone_from(&top.age.identities);
        }
        if self.age.recipients.is_empty() {
            self.age.recipients.clone_from(&top.age.recipients);
        }
    }
}

/// `age:`, which is only known to be refused.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct AgeKeys {
    /// `identities`
    pub identities: Vec<String>,
    /// `recipients`
    pub recipients: Vec<String>,
}

/// Text that must not be printed.
#[derive(Default, Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text that must not be printed.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text itself, for the one who signs or logs in with it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "\"\"" } else { "\"***\"" })
    }
}

/// Bytes, written with a unit (`5MiB`).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);
