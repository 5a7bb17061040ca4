//! The HTTP client under the SDK. Our own (`replica/web`) because the SDK's has no way to take a certificate on
//! trust, and would bring a second TLS stack.
//!
//! One client, with its connection pool and its parsed root certificates, serves all replicas that ask for
//! the same trust: a thousand databases on one endpoint share connections.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use aws_smithy_runtime_api::client::http::{
    HttpConnector as SdkConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;

pub(super) use super::super::web::Trust;
use super::super::web::{Pool, Watched, pool};
use crate::error::Result;

/// The client for this trust. Certificates are read on first use. Connections are driven by tasks of the runtime
/// that opened them and die with it, so each runtime (a test has its own) gets a pool of its own.
///
/// # Errors
/// A certificate file that cannot be read.
pub(super) fn client(trust: &Trust) -> Result<SharedHttpClient> {
    static CLIENTS: LazyLock<Mutex<HashMap<(Trust, tokio::runtime::Id), SharedHttpClient>>> =
        LazyLock::new(Mutex::default);
    let key = (trust.clone(), tokio::runtime::Handle::current().id());
    let mut clients = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(client) = clients.get(&key) {
        return Ok(client.clone());
    }
    let connector = SharedHttpConnector::new(Hyper(pool(trust)?));
    let client = http_client_fn(move |_, _| connector.clone());
    clients.insert(key, client.clone());
    Ok(client)
}

#[derive(Debug)]
struct Hyper(Pool<Watched<SdkBody>>);

impl SdkConnector for Hyper {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.0.clone();
        HttpConnectorFuture::new(async move {
            let request = request.try_into_http1x().map_err(|e| ConnectorError::user(e.into()))?;
            let response = client.request(request.map(Watched::new)).await.map_err(|e| {
                if e.is_connect() {
                    ConnectorError::io(e.into()).never_connected()
                } else {
                    ConnectorError::io(e.into())
                }
            })?;
            HttpResponse::try_from(response.map(|body| SdkBody::from_body_1_x(Watched::new(body))))
                .map_err(|e| ConnectorError::other(e.into(), None))
        })
    }
}
