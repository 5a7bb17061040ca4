//! The answer to PROPFIND: a `multistatus` in XML (RFC 4918 §14.16), as far as we asked.
//!
//! Servers differ in namespaces' prefixes, in absolute and relative `href`s, and in what stands before the path when a
//! proxy in front renames it. Parsing is total; XML entities other than the predefined ones are not resolved.

use percent_encoding::percent_decode_str;
use quick_xml::escape::unescape;
use quick_xml::events::Event;
use quick_xml::reader::Reader;

use crate::error::{Error, Result};
use crate::types::Timestamp;

/// What we ask for.
pub(super) const WANTED: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<D:propfind xmlns:D=\"DAV:\"><D:prop>\
     <D:resourcetype/><D:getcontentlength/><D:getlastmodified/></D:prop></D:propfind>";

/// One resource.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Resource {
    /// Decoded path, without host, and without slashes at its ends.
    path: String,
    pub(super) is_dir: bool,
    pub(super) size: Option<u64>,
    pub(super) modified: Option<Timestamp>,
}

impl Resource {
    /// The last component.
    pub(super) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    fn depth(&self) -> usize {
        self.path.split('/').count()
    }
}

/// All resources of an answer.
pub(super) fn parse(xml: &str) -> Result<Vec<Resource>> {
    let broken = |text: String| Error::corrupt("webdav: read listing").caused_by(text);
    let mut reader = Reader::from_str(xml);
    let mut found = Vec::new();
    let mut complete = false;
    // Names of the elements we are in, and the text of the innermost.
    let (mut inside, mut text): (Vec<String>, String) = (Vec::new(), String::new());
    let (mut resource, mut prop, mut status) = (Resource::default(), Resource::default(), String::new());
    loop {
        match reader.read_event().map_err(|e| broken(e.to_string()))? {
            Event::Start(tag) => {
                let name = local(tag.name().as_ref());
                match name.as_str() {
                    "response" => resource = Resource::default(),
                    "propstat" => (prop, status) = (Resource::default(), String::new()),
                    "collection" if inside.iter().any(|name| name == "resourcetype") => prop.is_dir = true,
                    _ => {}
                }
                inside.push(name);
                text.clear();
            }
            Event::Empty(tag)
                if local(tag.name().as_ref()) == "collection" && inside.iter().any(|name| name == "resourcetype") =>
            {
                prop.is_dir = true;
            }
            Event::Text(piece) => text.push_str(&piece.decode().map_err(|e| broken(e.to_string()))?),
            Event::CData(piece) => text.push_str(&piece.decode().map_err(|e| broken(e.to_string()))?),
            Event::GeneralRef(name) => {
                let name = name.decode().map_err(|e| broken(e.to_string()))?;
                text.push_str(&unescape(&format!("&{name};")).map_err(|e| broken(e.to_string()))?);
            }
            Event::End(_) => {
                let Some(name) = inside.pop() else { return Err(broken("an end without a start".to_owned())) };
                let value = std::mem::take(&mut text);
                let value = value.trim();
                match name.as_str() {
                    "href" if inside.last().is_some_and(|parent| parent == "response") => {
                        resource.path = path_of(value);
                    }
                    "getcontentlength" => prop.size = value.parse().ok(),
                    "getlastmodified" => prop.modified = http_date(value),
                    "status" if inside.last().is_some_and(|parent| parent == "propstat") => {
                        status = value.to_owned();
                    }
                    // Properties a resource does not have come with another status.
                    "propstat" if status.split(' ').nth(1) == Some("200") => {
                        resource.is_dir |= prop.is_dir;
                        resource.size = resource.size.or(prop.size);
                        resource.modified = resource.modified.or(prop.modified);
                    }
                    "response" => found.push(std::mem::take(&mut resource)),
                    "multistatus" => complete = true,
                    _ => {}
                }
            }
            Event::Eof => break,
            _ => {}
        }
    }
    // Half a listing must never look like a whole one.
    if complete { Ok(found) } else { Err(broken("the answer is no multistatus, or not all of one".to_owned())) }
}

/// What lies directly in the directory that was asked for, `dir` being its decoded path.
pub(super) fn children(resources: Vec<Resource>, dir: &str) -> Vec<Resource> {
    let dir = dir.trim_matches('/');
    if resources.iter().any(|r| r.path == dir) {
        let below = |r: &Resource| match r.path.strip_prefix(dir) {
            Some(rest) if dir.is_empty() => !rest.is_empty() && !rest.contains('/'),
            Some(rest) => rest.strip_prefix('/').is_some_and(|name| !name.is_empty() && !name.contains('/')),
            None => false,
        };
        return resources.into_iter().filter(below).collect();
    }
    // Behind a proxy that renames: the directory itself is the shortest.
    let Some(itself) = resources.iter().map(Resource::depth).min() else { return Vec::new() };
    resources.into_iter().filter(|r| r.depth() == itself + 1).collect()
}

fn local(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    name.rsplit(':').next().unwrap_or_default().to_owned()
}

/// `http://host/a%20b/` → `a b`
fn path_of(href: &str) -> String {
    let path = match href.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("", |at| &rest[at..]),
        None => href,
    };
    percent_decode_str(path.trim_matches('/')).decode_utf8_lossy().into_owned()
}

/// `Tue, 25 Nov 2026 18:00:00 GMT`
fn http_date(text: &str) -> Option<Timestamp> {
    let zoned = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(Timestamp::from_millis(zoned.timestamp().as_millisecond()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const APACHE: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<D:multistatus xmlns:D="DAV:" xmlns:ns0="DAV:">
<D:response xmlns:lp1="DAV:"><D:href>/dav/ltx/0/</D:href>
<D:propstat><D:prop><lp1:resourcetype><D:collection/></lp1:resourcetype>
<lp1:getlastmodified>Sat, 21 Nov 2026 00:40:06 GMT</lp1:getlastmodified></D:prop>
<D:status>HTTP/1.1 200 OK</D:status></D:propstat>
<D:propstat><D:prop><D:getcontentlength/></D:prop><D:status>HTTP/1.1 404 Not Found</D:status></D:propstat></D:response>
<D:response><D:href>/dav/ltx/0/a%20b%26.ltx</D:href>
<D:propstat><D:prop><lp1:resourcetype/><lp1:getcontentlength>17</lp1:getcontentlength>
<lp1:getlastmodified>Sat, 21 Nov 2026 00:40:06 GMT</lp1:getlastmodified></D:prop>
<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>
</D:multistatus>"#;

    #[test]
    fn files_and_directories_are_told_apart() {
        let all = parse(APACHE).unwrap();
        assert_eq!(all.len(), 2);
        assert!(all[0].is_dir && !all[1].is_dir);
        let files = children(all, "/dav/ltx/0/");
        assert_eq!(files.len(), 1);
        assert_eq!((files[0].name(), files[0].size), ("a b&.ltx", Some(17)));
        assert_eq!(files[0].modified, Some(Timestamp::from_millis(1_795_221_606_000)));
    }

    #[test]
    fn other_prefixes_entities_and_hosts_are_understood() {
        let xml = "<multistatus xmlns='DAV:'><response><href>http://inside:81/x/</href></response><response>\
             <href>http://inside:81/x/a&amp;b&#49;</href><propstat><prop><getcontentlength>3</getcontentlength></prop>\
             <status>HTTP/1.1 200 OK</status></propstat></response></multistatus>";
        let found = children(parse(xml).unwrap(), "/outside/x");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name(), found[0].size), ("a&b1", Some(3)));
    }

    #[test]
    fn half_an_answer_is_none() {
        for cut in [0, 10, 200, APACHE.len() - 5] {
            assert!(parse(&APACHE[..cut]).is_err(), "{cut}");
        }
        assert!(parse("<html><body>Welcome</body></html>").is_err());
    }

    proptest! {
        #[test]
        fn whatever_comes_is_a_listing_or_an_error(text in "[<>&;/a-z:D \"'=!\\[\\]-]{0,120}") {
            let _ = parse(&text).map(|found| children(found, "/a"));
        }
    }
}
