//! The HTTP client under the SDK: the connections all our backends share.

use std::collections::HashMap;

use async_trait::async_trait;
use azure_core::error::{Error, ErrorKind, Result};
use azure_core::http::headers::{HeaderName, HeaderValue, Headers};
use azure_core::http::{AsyncRawResponse, Body, HttpClient, Request, StatusCode};
use futures::TryStreamExt as _;

use super::super::web::{Web, pieces};

#[derive(Debug)]
pub(super) struct Transport(pub(super) Web);

#[async_trait]
impl HttpClient for Transport {
    async fn execute_request(&self, request: &Request) -> Result<AsyncRawResponse> {
        let Body::Bytes(body) = request.body() else {
            return Err(Error::with_message(ErrorKind::Other, "a body that is not in memory"));
        };
        let mut ours = http::Request::builder().method(request.method().as_ref()).uri(request.url().as_str());
        for (name, value) in request.headers().iter() {
            ours = ours.header(name.as_str(), value.as_str());
        }
        let ours = ours.body(body.clone()).map_err(|e| Error::new(ErrorKind::Other, e))?;
        let answer = self.0.send(ours).await.map_err(|err| {
            let kind = if err.connecting { ErrorKind::Connection } else { ErrorKind::Io };
            Error::new(kind, err)
        })?;
        let (head, body) = answer.into_parts();
        let headers: HashMap<HeaderName, HeaderValue> = head
            .headers
            .iter()
            .filter_map(|(name, value)| {
                Some((HeaderName::from(name.as_str().to_owned()), HeaderValue::from(value.to_str().ok()?.to_owned())))
            })
            .collect();
        let body = pieces(body).map_err(|cause| Error::new(ErrorKind::Io, cause));
        Ok(AsyncRawResponse::new(StatusCode::from(head.status.as_u16()), Headers::from(headers), Box::pin(body)))
    }
}
