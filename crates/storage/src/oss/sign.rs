//! Signatures of OSS, version 4, in headers.
//!
//! Canonical request, lines joined by line feeds: method; `/bucket/key`, percent-encoded but for slashes, whatever the
//! style of the address; the query, sorted, `name=value` or bare `name`; `content-md5`, `content-type` and every
//! `x-oss-*` header as `name:value` and a line feed, sorted; no additional headers; the payload's hash, which is never
//! told. String to sign: algorithm, `x-oss-date`, scope, SHA-256 of that. The key is derived from the secret over
//! date, region, `oss` and `aliyun_v4_request`.

use ring::{digest, hmac};

use super::web;

const ALGORITHM: &str = "OSS4-HMAC-SHA256";
/// Value of `x-oss-content-sha256`.
pub(super) const PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// What is signed.
pub(super) struct Facts<'a> {
    pub(super) method: &'a str,
    pub(super) bucket: &'a str,
    /// Empty for requests about the bucket.
    pub(super) object: &'a str,
    /// Not encoded.
    pub(super) query: &'a [(String, String)],
    /// Names in lower case. Only those that count are signed.
    pub(super) headers: &'a [(String, String)],
    pub(super) region: &'a str,
    /// `20260102T030405Z`
    pub(super) date: &'a str,
}

/// The query as it is sent and signed.
pub(super) fn query(pairs: &[(String, String)]) -> String {
    let mut pairs: Vec<(String, String)> =
        pairs.iter().map(|(name, value)| (web::encode(name), web::encode(value))).collect();
    pairs.sort_unstable();
    let pairs = pairs.into_iter().map(|(name, value)| if value.is_empty() { name } else { format!("{name}={value}") });
    pairs.collect::<Vec<_>>().join("&")
}

/// The value of the `Authorization` header.
pub(super) fn authorization(facts: &Facts<'_>, access_key_id: &str, secret: &str) -> String {
    let day = &facts.date[..8];
    let scope = format!("{day}/{}/oss/aliyun_v4_request", facts.region);
    let request = digest::digest(&digest::SHA256, canonical_request(facts).as_bytes());
    let text = format!("{ALGORITHM}\n{}\n{scope}\n{}", facts.date, hex(request.as_ref()));
    let mut key = format!("aliyun_v4{secret}").into_bytes();
    for step in [day, facts.region, "oss", "aliyun_v4_request"] {
        key = mac(&key, step).as_ref().to_vec();
    }
    let signature = hex(mac(&key, &text).as_ref());
    format!("{ALGORITHM} Credential={access_key_id}/{scope},Signature={signature}")
}

fn canonical_request(facts: &Facts<'_>) -> String {
    let counts = |name: &str| name == "content-type" || name == "content-md5" || name.starts_with("x-oss-");
    let mut headers: Vec<_> = facts.headers.iter().filter(|(name, _)| counts(name)).collect();
    headers.sort_unstable();
    let headers: String = headers.into_iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let path = format!("/{}/{}", web::encode(facts.bucket), web::encode_path(facts.object));
    format!("{}\n{path}\n{}\n{headers}\n\n{PAYLOAD}", facts.method, query(facts.query))
}

fn mac(key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_request_is_written_down_in_one_way_only() {
        let query = pairs(&[("uploads", ""), ("prefix", "a/b c")]);
        let headers = pairs(&[("x-oss-date", "d"), ("host", "ignored"), ("content-type", " t ")]);
        let facts = Facts {
            method: "GET",
            bucket: "bkt",
            object: "./0000/ä",
            query: &query,
            headers: &headers,
            region: "cn-hangzhou",
            date: "20231203T121212Z",
        };
        let want =
            "GET\n/bkt/./0000/%C3%A4\nprefix=a%2Fb%20c&uploads\ncontent-type:t\nx-oss-date:d\n\n\nUNSIGNED-PAYLOAD";
        assert_eq!(canonical_request(&facts), want);
        let line = authorization(&facts, "ak", "sk");
        assert!(
            line.starts_with("OSS4-HMAC-SHA256 Credential=ak/20231203/cn-hangzhou/oss/aliyun_v4_request,Signature=")
        );
        assert_ne!(line, authorization(&facts, "ak", "other"));
    }
}
