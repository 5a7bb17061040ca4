//! Shared Key: the signature made with an account's key, which the SDK does not have.
//!
//! String to sign, joined by line feeds: the method; eleven standard headers, empty where absent; each `x-ms-*` header
//! as `name:value` in order; `/account` and the path as it is sent; each parameter of the query as `name:value` in
//! order, decoded. Signed with HMAC-SHA-256 under the decoded key.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use azure_core::http::headers::HeaderName;
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::{Context, Request};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac;

use crate::sys::Clock;

/// Headers of the string to sign, in its order; the length comes from the body.
const HEADERS: [&str; 11] = [
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
];

/// Signs every attempt.
pub(super) struct SharedKey {
    account: String,
    key: hmac::Key,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedKey").field("account", &self.account).finish_non_exhaustive()
    }
}

impl SharedKey {
    /// `key` is the decoded account key.
    pub(super) fn new(account: &str, key: &[u8], clock: Arc<dyn Clock>) -> Self {
        Self { account: account.to_owned(), key: hmac::Key::new(hmac::HMAC_SHA256, key), clock }
    }

    fn authorization(&self, request: &Request) -> String {
        let text = string_to_sign(&self.account, request);
        let signature = BASE64.encode(hmac::sign(&self.key, text.as_bytes()));
        format!("SharedKey {}:{signature}", self.account)
    }
}

#[async_trait]
impl Policy for SharedKey {
    async fn send(&self, ctx: &Context, request: &mut Request, next: &[Arc<dyn Policy>]) -> PolicyResult {
        let now = jiff::Timestamp::from_millisecond(self.clock.now().millis()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        request.insert_header("x-ms-date", now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string());
        let authorization = self.authorization(request);
        request.insert_header("authorization", authorization);
        next[0].send(ctx, request, &next[1..]).await
    }
}

fn string_to_sign(account: &str, request: &Request) -> String {
    let header = |name: &'static str| request.headers().get_optional_str(&HeaderName::from_static(name));
    let mut text = request.method().as_ref().to_owned();
    for name in HEADERS {
        text.push('\n');
        match name {
            "content-length" => {
                if let Some(length) = request.body().len().filter(|n| *n > 0) {
                    text.push_str(&length.to_string());
                }
            }
            name => text.push_str(header(name).unwrap_or_default().trim()),
        }
    }
    let mut ours: Vec<(&str, &str)> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|(name, _)| name.starts_with("x-ms-"))
        .collect();
    ours.sort_unstable();
    for (name, value) in ours {
        text.push_str(&format!("\n{name}:{}", value.trim()));
    }
    text.push_str(&format!("\n/{account}{}", request.url().path()));
    let mut query: Vec<(String, String)> =
        request.url().query_pairs().map(|(name, value)| (name.to_lowercase(), value.into_owned())).collect();
    query.sort_unstable();
    for (name, value) in query {
        text.push_str(&format!("\n{name}:{value}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use azure_core::http::{Method, Url};

    use super::*;

    /// The example of the service's documentation ("Authorize with Shared Key"), with its account and string to sign.
    #[test]
    fn the_string_to_sign_is_the_documented_one() {
        let url = "https://myaccount.blob.core.windows.net/mycontainer?restype=container&comp=metadata&timeout=20";
        let mut request = Request::new(Url::parse(url).unwrap(), Method::Get);
        request.insert_header("x-ms-version", "2014-02-14");
        request.insert_header("x-ms-date", "Fri, 26 Jun 2015 23:39:12 GMT");
        let want = "GET\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:Fri, 26 Jun 2015 23:39:12 GMT\nx-ms-version:2014-02-14\n/myaccount/\
                    mycontainer\ncomp:metadata\nrestype:container\ntimeout:20";
        assert_eq!(string_to_sign("myaccount", &request), want);
    }

    #[test]
    fn a_body_counts_and_the_path_is_signed_as_sent() {
        let url = "http://127.0.0.1:1/acct/c/a%2Fb%20c";
        let mut request = Request::new(Url::parse(url).unwrap(), Method::Put);
        request.insert_header("if-none-match", "*");
        request.set_body(bytes::Bytes::from_static(b"12345"));
        let text = string_to_sign("acct", &request);
        assert_eq!(text, "PUT\n\n\n5\n\n\n\n\n\n*\n\n\n/acct/acct/c/a%2Fb%20c");
    }

    #[test]
    fn the_key_is_not_printed() {
        let key = SharedKey::new("acct", b"topsecret", Arc::new(crate::sys::SystemClock::new()));
        assert!(!format!("{key:?}").contains("topsecret"));
    }
}
