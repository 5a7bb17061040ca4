//! The client of the control socket, and what its commands share.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::flags::{Flag, Kind, Matches};
use super::{Failure, block_on};
use crate::error::Error;
use crate::server::api::ErrorReply;

/// `-socket`
pub(super) const SOCKET: Flag =
    Flag::value("socket", Kind::Text, "PATH", &["Path of the control socket.", "Defaults to /var/run/litestream.sock"]);
/// `-timeout` of commands that only ask.
pub(super) const TIMEOUT_ASK: Flag = timeout(&["Seconds to wait for an answer.", "Defaults to 10"]);
/// `-timeout` of commands that have something done.
pub(super) const TIMEOUT_DO: Flag = timeout(&["Seconds the command may take.", "Defaults to 30"]);
/// `-json`
pub(super) const JSON: Flag = Flag::switch("json", &["Prints JSON."]);

const fn timeout(help: &'static [&'static str]) -> Flag {
    Flag::value("timeout", Kind::Int, "SECONDS", help)
}

const DEFAULT_SOCKET: &str = crate::config::defaults::SOCKET_PATH;
/// No answer is longer: ten thousand databases take about two megabytes.
const MAX_REPLY: usize = 64 << 20;

/// How a command reaches the daemon.
#[derive(Debug)]
pub(super) struct Client {
    command: &'static str,
    pub(super) socket: String,
    /// Seconds, as typed.
    pub(super) timeout: i64,
}

impl Client {
    /// From the flags that all these commands have.
    pub(super) fn new(command: &'static str, matches: &Matches, default_timeout: i64) -> Self {
        Self {
            command,
            socket: matches.text_opt("socket").unwrap_or(DEFAULT_SOCKET).to_owned(),
            timeout: matches.int("timeout").unwrap_or(default_timeout),
        }
    }

    /// Refuses a timeout that allows no time.
    pub(super) fn check_timeout(&self) -> Result<(), Failure> {
        if self.timeout > 0 { Ok(()) } else { Err(Failure::new("timeout must be greater than 0")) }
    }

    /// `GET`
    pub(super) fn get<R: DeserializeOwned>(&self, endpoint: &str) -> Result<R, Failure> {
        self.ask(Method::GET, endpoint, Bytes::new())
    }

    /// `POST` with a JSON body.
    pub(super) fn post<R: DeserializeOwned>(&self, endpoint: &str, body: &impl Serialize) -> Result<R, Failure> {
        let encoded = |err| Error::new(crate::error::ErrorKind::Internal, "encode request").caused_by(err);
        self.ask(Method::POST, endpoint, serde_json::to_vec(body).map_err(encoded)?.into())
    }

    fn ask<R: DeserializeOwned>(&self, method: Method, endpoint: &str, body: Bytes) -> Result<R, Failure> {
        let (status, reply) = block_on(async {
            let verb = if method == Method::GET { "Get" } else { "Post" };
            let exchanged = self.bounded(exchange(&self.socket, method, endpoint, body)).await;
            exchanged.map_err(|why| {
                let request = format!("{verb} \"http://localhost{endpoint}\"");
                Failure::new(format!("failed to connect to control socket: {request}: {why}"))
            })
        })?;
        if status != StatusCode::OK {
            let said = serde_json::from_slice::<ErrorReply>(&reply).map(|reply| reply.error);
            let said = said.ok().filter(|said| !said.is_empty());
            let raw = || String::from_utf8_lossy(&reply).into_owned();
            return Err(Failure::new(format!("{} failed: {}", self.command, said.unwrap_or_else(raw))));
        }
        serde_json::from_slice(&reply).map_err(|err| Failure::new(format!("failed to parse response: {err}")))
    }

    async fn bounded<T>(&self, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        let Ok(seconds) = u64::try_from(self.timeout) else {
            return Err(format!("dial unix {}: i/o timeout", self.socket));
        };
        if seconds == 0 {
            return work.await;
        }
        let late = || "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned();
        tokio::time::timeout(Duration::from_secs(seconds), work).await.unwrap_or_else(|_| Err(late()))
    }
}

/// One request over a connection of its own.
async fn exchange(socket: &str, method: Method, endpoint: &str, body: Bytes) -> Result<(StatusCode, Bytes), String> {
    let stream = UnixStream::connect(socket).await;
    let stream = stream.map_err(|err| Error::io(format!("dial unix {socket}: connect"), err).to_string())?;
    let broken = |err: hyper::Error| err.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = hyper::Request::builder()
        .method(method)
        .uri(endpoint)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|err| err.to_string())?;
    let answered = async move {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_REPLY).collect().await;
        Ok((status, body.map_err(|err| err.to_string())?.to_bytes()))
    };
    // The connection is driven here, not by a task: it ends with the answer.
    let mut connection = std::pin::pin!(connection);
    let mut answered = std::pin::pin!(answered);
    let mut open = true;
    loop {
        tokio::select! {
            answer = answered.as_mut() => return answer,
            _ = connection.as_mut(), if open => open = false,
        }
    }
}

/// The one database a command is about.
pub(super) fn one_path<'a>(matches: &'a Matches, example: &str) -> Result<&'a str, Failure> {
    match matches.positionals.as_slice() {
        [] => Err(Failure::with_try("database path required", example)),
        [path] => Ok(path),
        _ => Err(Failure::new("too many arguments")),
    }
}

/// Refuses any positional argument.
pub(super) fn no_arguments(matches: &Matches) -> Result<(), Failure> {
    if matches.positionals.is_empty() { Ok(()) } else { Err(Failure::new("too many arguments")) }
}
