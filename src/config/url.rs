//! The grammar of replica URLs: the only place that takes them apart. Backends other than `file`
//! add their forms here as they are built.

use crate::error::{Error, Result};

/// Whether a text is a replica URL rather than a path: `^\w+://`.
#[must_use]
pub fn is_replica_url(text: &str) -> bool {
    match text.find("://") {
        Some(0) | None => false,
        Some(at) => text[..at].bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'),
    }
}

/// The scheme of a replica URL in lower case, with spellings of one backend made one.
pub(super) fn backend_of(url: &str) -> Option<String> {
    if !is_replica_url(url) {
        return None;
    }
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
    Some(if scheme == "webdavs" { "webdav".to_owned() } else { scheme })
}

/// A URL, split but not decoded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SplitUrl<'a> {
    pub(super) host: &'a str,
    pub(super) path: &'a str,
    pub(super) fragment: Option<&'a str>,
}

/// Splits `scheme://host/path?query#fragment`; the query is left to the backends that have one.
///
/// # Errors
/// No scheme, control characters, or a host that cannot be one.
pub(super) fn split(url: &str) -> Result<SplitUrl<'_>> {
    let bad = |what: String| Err(Error::invalid(format!("parse {url:?}: {what}")));
    if url.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return bad("net/url: invalid control character in URL".to_owned());
    }
    let scheme_end =
        url.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))).unwrap_or(url.len());
    let has_scheme = url.starts_with(|c: char| c.is_ascii_alphabetic()) && url[scheme_end..].starts_with(':');
    if !has_scheme {
        return Err(Error::invalid(format!("replica url scheme required: {url}")));
    }
    let rest = &url[scheme_end + 1..];
    let (rest, fragment) = match rest.split_once('#') {
        Some((rest, fragment)) => (rest, Some(fragment)),
        None => (rest, None),
    };
    let rest = rest.split_once('?').map_or(rest, |(rest, _)| rest);
    let (host, path) = match rest.strip_prefix("//") {
        Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
        None => ("", rest),
    };
    if let Some(c) = host.chars().find(|c| matches!(c, ' ' | '"' | '<' | '>' | '\\' | '^' | '`' | '{' | '|' | '}')) {
        return bad(format!("invalid character {:?} in host name", c.to_string()));
    }
    Ok(SplitUrl { host, path, fragment })
}

/// The directory a `file:` URL names. It is re-encoded, not decoded: a blank becomes `%20` in the
/// directory name. A host is the first directory; the query is dropped, the fragment kept.
///
/// # Errors
/// As [`split`], and a `%` that is not followed by two hex digits.
pub(super) fn file_path(url: &str) -> Result<String> {
    let parts = split(url)?;
    let mut path = String::new();
    if !parts.host.is_empty() {
        path.push('/');
        path.push_str(parts.host);
    }
    path.push_str(&escape_path(parts.path, url)?);
    if let Some(fragment) = parts.fragment.filter(|f| !f.is_empty()) {
        path.push('#');
        path.push_str(&escape_path(fragment, url)?);
    }
    Ok(path)
}

/// Keeps a path that is already validly encoded; encodes it whole otherwise.
fn escape_path(path: &str, url: &str) -> Result<String> {
    let decoded = unescape(path).map_err(|bad| Error::invalid(format!("parse {url:?}: invalid URL escape {bad:?}")))?;
    let valid = |b: u8| b.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:@[]%/".contains(&b);
    if path.bytes().all(valid) {
        return Ok(path.to_owned());
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&b);
    let mut out = String::with_capacity(path.len() + 16);
    for byte in decoded {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    Ok(out)
}

fn unescape(text: &str) -> std::result::Result<Vec<u8>, String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let hex = bytes.get(at + 1..at + 3).and_then(|h| std::str::from_utf8(h).ok());
            match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
                Some(byte) => out.push(byte),
                None => return Err(String::from_utf8_lossy(&bytes[at..bytes.len().min(at + 3)]).into_owned()),
            }
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_and_two_slashes_make_a_replica_url() {
        for url in ["file:///x", "s3://b", "sqlite:///x.db", "a_1://"] {
            assert!(is_replica_url(url), "{url}");
        }
        for path in ["foo:x", "/a/b", "://x", "a-b://x", "./s3://x", ""] {
            assert!(!is_replica_url(path), "{path}");
        }
        assert_eq!(backend_of("WebDAVs://h/x").as_deref(), Some("webdav"));
    }

    #[test]
    fn file_urls_are_re_encoded_with_all_quirks_of_the_reference() {
        for (url, want) in [
            ("file:///backup/a b", "/backup/a%20b"),
            ("file:///backup/a%20b", "/backup/a%20b"),
            ("file:///backup/é", "/backup/%C3%A9"),
            ("file:///backup/x?retain=1", "/backup/x"),
            ("file:///backup/x#frag", "/backup/x#frag"),
            ("file://host/x/", "/host/x/"),
            ("FILE:///backup//g/../h", "/backup//g/../h"),
            ("file://", ""),
            ("file://~/x", "/~/x"),
            ("file:///a!b", "/a!b"),
            ("file:///a!b c", "/a%21b%20c"),
        ] {
            assert_eq!(file_path(url).unwrap(), want, "{url}");
        }
    }

    #[test]
    fn unusable_urls_say_why() {
        for (url, want) in [
            ("/backup/x", "replica url scheme required: /backup/x"),
            ("rep", "replica url scheme required: rep"),
            ("file:///%zz", "parse \"file:///%zz\": invalid URL escape \"%zz\""),
            ("file://a b/x", "parse \"file://a b/x\": invalid character \" \" in host name"),
        ] {
            assert_eq!(file_path(url).unwrap_err().to_string(), want);
        }
    }
}
