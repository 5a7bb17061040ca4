//! Asking for a URL, for the sake of being heard.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::header::{HOST, LOCATION, USER_AGENT};
use hyper::{Request, Uri};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use crate::error::{Error, ErrorKind, Result};

const MAX_REDIRECTS: u32 = 10;
const AGENT: &str = concat!("litestream/", env!("CARGO_PKG_VERSION"));

/// Sends a GET and returns the status of the answer. Redirects are followed.
///
/// # Errors
/// `Invalid` for what is no URL; `Unavailable` if nobody answered in time.
pub(super) async fn http_get(url: &str, timeout: Duration) -> Result<u16> {
    let unavailable = |err: Box<dyn std::error::Error + Send + Sync>| {
        Error::new(ErrorKind::Unavailable, "get").caused_by(innermost(err.as_ref()))
    };
    let connector = HttpsConnectorBuilder::new()
        .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
        .map_err(|err| Error::io("load certificates", err))?
        .https_or_http()
        .enable_http1()
        .build();
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let asked = async {
        let mut at: Uri = url.parse().map_err(|_| Error::invalid("not a URL"))?;
        for _ in 0..=MAX_REDIRECTS {
            let host = at.authority().map(|a| a.as_str().rsplit('@').next().unwrap_or_default().to_owned());
            let host = host.ok_or_else(|| Error::invalid("url has no host"))?;
            let request = Request::get(at.clone()).header(HOST, host).header(USER_AGENT, AGENT).body(Empty::new());
            let request = request.map_err(|err| Error::invalid("not a URL").caused_by(err))?;
            let response = client.request(request).await.map_err(|err| unavailable(err.into()))?;
            let status = response.status();
            let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
            let Some(to) = to.filter(|_| status.is_redirection()) else { return Ok(status.as_u16()) };
            at = follow(&at, to).ok_or_else(|| Error::new(ErrorKind::Unavailable, "redirected to what is no URL"))?;
        }
        Err(Error::new(ErrorKind::Unavailable, format!("stopped after {MAX_REDIRECTS} redirects")))
    };
    let late = || Error::new(ErrorKind::Unavailable, "no answer in time");
    tokio::time::timeout(timeout, asked).await.unwrap_or_else(|_| Err(late()))
}

/// Where a redirect leads: a URL of its own, or a path on the same host.
fn follow(from: &Uri, to: &str) -> Option<Uri> {
    if to.starts_with("http://") || to.starts_with("https://") {
        return to.parse().ok();
    }
    let origin = format!("{}://{}", from.scheme_str()?, from.authority()?);
    if to.starts_with('/') {
        return format!("{origin}{to}").parse().ok();
    }
    let dir = from.path().rsplit_once('/').map_or("", |(dir, _)| dir);
    format!("{origin}{dir}/{to}").parse().ok()
}

/// The cause that says most; the layers above only say that a connection failed.
fn innermost(err: &(dyn std::error::Error + 'static)) -> String {
    let mut err = err;
    while let Some(source) = err.source() {
        err = source;
    }
    err.to_string()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers each connection with the next of `answers`; returns what was asked for.
    async fn server(answers: Vec<String>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let served = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 1024];
                let n = stream.read(&mut head).await.unwrap();
                let head = String::from_utf8_lossy(&head[..n]).into_owned();
                asked.push(head.lines().next().unwrap().to_owned());
                let answer = format!("HTTP/1.1 {answer}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        });
        (addr, served)
    }

    #[tokio::test]
    async fn redirects_are_followed_and_the_last_status_counts() {
        let (addr, served) =
            server(vec!["302 Found\r\nLocation: /b?x=1".to_owned(), "204 No Content".to_owned()]).await;
        let status = http_get(&format!("http://{addr}/a/ping?a=1"), Duration::from_secs(10)).await.unwrap();
        assert_eq!(status, 204);
        assert_eq!(served.await.unwrap(), ["GET /a/ping?a=1 HTTP/1.1", "GET /b?x=1 HTTP/1.1"]);
    }

    #[tokio::test]
    async fn nobody_there_is_an_error() {
        let (addr, _) = server(Vec::new()).await;
        let err = http_get(&format!("http://{addr}/"), Duration::from_secs(10)).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Unavailable);
        assert_eq!(http_get("http://", Duration::from_secs(1)).await.unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn a_redirect_may_be_relative() {
        let from: Uri = "https://h:8/a/b?c".parse().unwrap();
        for (to, want) in [("http://x/y", "http://x/y"), ("/y", "https://h:8/y"), ("y", "https://h:8/a/y")] {
            assert_eq!(follow(&from, to).unwrap().to_string(), want);
        }
    }
}
