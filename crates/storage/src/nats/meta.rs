//! The record that makes chunks an object: JSON in the last message of the object's subject, as every client of NATS
//! object stores writes it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use serde::{Deserialize, Serialize};

use super::super::stamp::stamp_text;
use crate::error::{Error, Result};
use crate::types::{Timestamp, parse_timestamp};

/// Where a stamp is kept.
const STAMP: &str = "Litestream-Timestamp";

/// What is known of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    headers: Option<BTreeMap<String, Vec<String>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    options: Option<Options>,
    bucket: String,
    /// Names the subject of the chunks.
    #[serde(default)]
    pub(super) nuid: String,
    #[serde(default)]
    pub(super) size: u64,
    #[serde(default)]
    mtime: String,
    #[serde(default)]
    pub(super) chunks: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) deleted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Options {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    link: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_chunk_size: Option<u64>,
}

impl Meta {
    pub(super) fn new(bucket: &str, name: &str, nuid: &str, stamp: Timestamp, now: Timestamp) -> Self {
        Self {
            name: name.to_owned(),
            headers: Some(BTreeMap::from([(STAMP.to_owned(), vec![stamp_text(stamp)])])),
            options: Some(Options { link: None, max_chunk_size: Some(super::CHUNK as u64) }),
            bucket: bucket.to_owned(),
            nuid: nuid.to_owned(),
            size: 0,
            mtime: stamp_text(now),
            chunks: 0,
            digest: None,
            deleted: false,
        }
    }

    /// Reads a record; whoever shares the bucket may have written it.
    pub(super) fn decode(json: &[u8]) -> Result<Self> {
        let meta: Self =
            serde_json::from_slice(json).map_err(|e| Error::corrupt("nats: read object info").caused_by(e))?;
        // It becomes part of a subject.
        if !meta.nuid.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(Error::corrupt("nats: read object info").caused_by("the object's id is none"));
        }
        Ok(meta)
    }

    /// Whether there is such an object, with bytes of its own.
    pub(super) fn is_object(&self) -> bool {
        !self.deleted && self.options.as_ref().is_none_or(|options| options.link.is_none())
    }

    /// The stamp it was put with.
    pub(super) fn stamp(&self) -> Option<Timestamp> {
        let headers = self.headers.as_ref()?;
        let values = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(STAMP))?.1;
        parse_timestamp(values.first()?).ok()
    }
}

/// The form of a checksum in a record.
pub(super) fn digest_text(sum: &[u8]) -> String {
    format!("SHA-256={}", URL_SAFE.encode(sum))
}

/// The subject of an object's record.
pub(super) fn meta_subject(bucket: &str, name: &str) -> String {
    format!("$O.{bucket}.M.{}", URL_SAFE.encode(name))
}

/// The subject of an object's chunks.
pub(super) fn chunk_subject(bucket: &str, nuid: &str) -> String {
    format!("$O.{bucket}.C.{nuid}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the reference wrote it.
    const THEIRS: &str = r#"{"name":"ltx/0/0000000000000001-0000000000000001.ltx","headers":{"Litestream-Timestamp":["2026-11-21T00:40:06.49Z"]},"options":{"max_chunk_size":131072},"bucket":"b","nuid":"AbC123","size":17,"mtime":"0001-01-01T00:00:00Z","chunks":1,"digest":"SHA-256=xyz="}"#;

    #[test]
    fn records_of_the_reference_are_read() {
        let meta = Meta::decode(THEIRS.as_bytes()).unwrap();
        assert_eq!((meta.size, meta.chunks, meta.nuid.as_str()), (17, 1, "AbC123"));
        assert_eq!(meta.stamp(), Some(Timestamp::from_millis(1_795_221_606_490)));
        assert!(meta.is_object());
    }

    #[test]
    fn what_we_write_we_read() {
        let stamp = Timestamp::from_millis(1_795_221_606_000);
        let meta = Meta::new("b", "ltx/0/x", "abc", stamp, stamp);
        let json = serde_json::to_string(&meta).unwrap();
        assert!(json.contains(r#""headers":{"Litestream-Timestamp":["2026-11-21T00:40:06Z"]}"#), "{json}");
        assert_eq!(Meta::decode(json.as_bytes()).unwrap(), meta);
    }

    #[test]
    fn links_and_deleted_objects_are_none_and_ids_cannot_leave_their_subject() {
        let link = r#"{"name":"x","bucket":"b","options":{"link":{"bucket":"c"}}}"#;
        assert!(!Meta::decode(link.as_bytes()).unwrap().is_object());
        let deleted = r#"{"name":"x","bucket":"b","deleted":true}"#;
        assert!(!Meta::decode(deleted.as_bytes()).unwrap().is_object());
        assert!(Meta::decode(br#"{"name":"x","bucket":"b","nuid":"a.>"}"#).is_err());
        assert!(Meta::decode(b"{}").is_err());
    }

    #[test]
    fn names_are_base64_in_subjects() {
        assert_eq!(meta_subject("b", "ltx/0/x"), "$O.b.M.bHR4LzAveA==");
    }
}
