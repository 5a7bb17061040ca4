//! Bodies: what the service says and is told in XML.

use quick_xml::de::from_reader;
use quick_xml::escape::escape;
use serde::Deserialize;

/// Why a request was refused; empty where the answer is not the service's own.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Refusal {
    pub(super) code: String,
    pub(super) message: String,
}

pub(super) fn refusal(body: &[u8]) -> Refusal {
    from_reader(body).unwrap_or_default()
}

/// One page of a listing. Keys are percent-encoded.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Page {
    pub(super) is_truncated: bool,
    pub(super) next_continuation_token: Option<String>,
    pub(super) contents: Vec<Object>,
    pub(super) common_prefixes: Vec<Prefix>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Object {
    pub(super) key: String,
    pub(super) size: u64,
    pub(super) last_modified: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Prefix {
    pub(super) prefix: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Upload {
    pub(super) upload_id: String,
}

/// # Errors
/// What is wrong with the text.
pub(super) fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    from_reader(body).map_err(|e| e.to_string())
}

/// What a batch delete deleted. Keys are percent-encoded.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Deleted {
    pub(super) deleted: Vec<DeletedKey>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct DeletedKey {
    pub(super) key: String,
}

/// The body of a batch delete that reports what it deleted.
pub(super) fn delete(names: &[String]) -> String {
    let mut body = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?><Delete><Quiet>false</Quiet>");
    for name in names {
        body.push_str(&format!("<Object><Key>{}</Key></Object>", escape(name.as_str())));
    }
    body.push_str("</Delete>");
    body
}

/// The body that ends a multipart upload. Parts in ascending order.
pub(super) fn complete(parts: &[(u64, String)]) -> String {
    let mut body = String::from("<CompleteMultipartUpload>");
    for (number, etag) in parts {
        let etag = escape(etag.as_str());
        body.push_str(&format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"));
    }
    body.push_str("</CompleteMultipartUpload>");
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read() {
        let text = br#"<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>b</Name><IsTruncated>true</IsTruncated>
            <NextContinuationToken>t=</NextContinuationToken><Contents><Key>p%2Fa</Key><LastModified>2026-11-21T00:40:06.000Z
            </LastModified><Size>7</Size></Contents><Contents><Key>p%2Fb</Key><Size>8</Size></Contents><CommonPrefixes>
            <Prefix>p%2Fc%2F</Prefix></CommonPrefixes></ListBucketResult>"#;
        let page: Page = parse(text).unwrap();
        assert_eq!((page.is_truncated, page.next_continuation_token.as_deref()), (true, Some("t=")));
        assert_eq!(page.contents.iter().map(|o| o.size).collect::<Vec<_>>(), [7, 8]);
        assert_eq!(page.common_prefixes[0].prefix, "p%2Fc%2F");
        let empty: Page = parse(b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>").unwrap();
        assert!(empty.contents.is_empty() && !empty.is_truncated);
    }

    #[test]
    fn a_page_of_somebody_else_is_no_page() {
        assert!(parse::<Page>(b"not xml at all <").is_err());
        assert_eq!(refusal(b"<html><body>proxy").code, "");
        let refused = refusal(b"<Error><Code>NoSuchKey</Code><Message>m</Message><HostId>h</HostId></Error>");
        assert_eq!((refused.code.as_str(), refused.message.as_str()), ("NoSuchKey", "m"));
    }

    #[test]
    fn names_are_escaped() {
        assert!(delete(&["a&<b".to_owned()]).contains("<Key>a&amp;&lt;b</Key>"));
    }
}
