//! The MCP server (`spec: control` §2): JSON-RPC over HTTP for assistants. What tools do is the
//! business of a [`Toolbox`].
//!
//! Written against Litestream's wire behaviour, which MCP libraries do not offer: any path, any
//! `Accept`, plain JSON answers, sessions by form only.
//!
//! Who may ask: on a loopback address whoever can reach it, but no web page — `Host` and `Origin`
//! must name this machine. On any other address only who knows the token.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, StatusCode};
use serde_json::{Map, Value, json};
use tracing::warn;

use super::api::line;
use super::endpoint::{listen, split_address};
use super::http::{Handler, JSON, Limits, Request, Response, ResponseBody, Serving, TEXT, respond, serve};
use crate::config::McpSettings;
use crate::error::{Error, Result};
use crate::sys::{World, blocking};

/// What a tool came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolOutcome {
    /// What it says.
    pub text: String,
    /// Whether it failed.
    pub failed: bool,
}

/// What tools do.
pub trait Toolbox: Send + Sync + 'static {
    /// Runs a tool that is in [`TOOLS`]. May block.
    fn call(&self, tool: &str, arguments: &Map<String, Value>) -> ToolOutcome;
}

/// A tool as it is announced.
#[derive(Debug)]
pub struct Tool {
    /// Litestream's name for it.
    pub name: &'static str,
    about: &'static str,
    /// Whether it leaves everything as it is.
    pub reads_only: bool,
    /// Name, type, whether it must be given, meaning.
    arguments: &'static [(&'static str, &'static str, bool, &'static str)],
}

const CONFIG: (&str, &str, bool, &str) =
    ("config", "string", false, "Path of the configuration file. Defaults to the daemon's own.");

/// All tools, by name.
pub static TOOLS: [Tool; 7] = [
    Tool {
        name: "litestream_databases",
        about: "Lists the databases of the configuration and where they are replicated.",
        reads_only: true,
        arguments: &[CONFIG],
    },
    Tool {
        name: "litestream_info",
        about: "Reports everything at once: version, configuration, databases and their LTX files.",
        reads_only: true,
        arguments: &[CONFIG],
    },
    Tool {
        name: "litestream_ltx",
        about: "Lists the LTX files of a database or of a replica URL.",
        reads_only: true,
        arguments: &[("path", "string", true, "Path of a configured database, or a replica URL."), CONFIG],
    },
    Tool {
        name: "litestream_reset",
        about: "Clears the local state of a database, so that the next sync begins with a whole image.",
        reads_only: false,
        arguments: &[("path", "string", true, "Path of the database."), CONFIG],
    },
    Tool {
        name: "litestream_restore",
        about: "Restores a database from its replica.",
        reads_only: false,
        arguments: &[
            ("path", "string", true, "Path of a configured database, or a replica URL."),
            ("o", "string", false, "Path of the restored database. Defaults to the database's own."),
            CONFIG,
            ("txid", "string", false, "Restore up to this transaction, 16 hex digits."),
            ("timestamp", "string", false, "Restore to this time, RFC 3339."),
            ("parallelism", "string", false, "How many files to fetch at once."),
            ("if_db_not_exists", "boolean", false, "Do nothing if the database exists."),
            ("if_replica_exists", "boolean", false, "Do nothing if there is nothing to restore."),
        ],
    },
    Tool {
        name: "litestream_status",
        about: "Shows the local replication state of databases.",
        reads_only: true,
        arguments: &[CONFIG, ("path", "string", false, "Path of one database.")],
    },
    Tool { name: "litestream_version", about: "Shows the version.", reads_only: true, arguments: &[] },
];

impl Tool {
    fn announced(&self) -> Value {
        let mut properties = Map::new();
        for (name, kind, _, about) in self.arguments {
            properties.insert((*name).to_owned(), json!({"description": about, "type": kind}));
        }
        let mut schema = json!({"type": "object", "properties": properties});
        let required: Vec<&str> = self.arguments.iter().filter(|a| a.2).map(|a| a.0).collect();
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        json!({
            "name": self.name,
            "description": self.about,
            "inputSchema": schema,
            "annotations": {
                "readOnlyHint": self.reads_only,
                "destructiveHint": !self.reads_only,
                "idempotentHint": self.reads_only,
                "openWorldHint": true,
            },
        })
    }
}

/// The MCP server, being listened on.
#[derive(Debug)]
pub struct McpServer {
    serving: Serving,
}

impl McpServer {
    /// Answers from then on.
    ///
    /// # Errors
    /// The address cannot be listened on, or others could reach it and there is no token.
    pub async fn start(world: World, settings: &McpSettings, tools: Arc<dyn Toolbox>) -> Result<Self> {
        let addr = settings.addr.as_str();
        let no_host = split_address(addr).is_some_and(|(host, _)| host.is_empty());
        let kept_here = no_host && settings.token.is_empty();
        let bind = if kept_here { format!("127.0.0.1{addr}") } else { addr.to_owned() };
        let listener = listen(&bind).await?;
        if kept_here {
            warn!(
                addr = %addr,
                hint = "set mcp.token to let others in",
                "mcp-addr names no host and there is no token: only this machine is answered"
            );
        }
        let local = listener.local_addr().is_ok_and(|at: SocketAddr| at.ip().is_loopback());
        if !local && settings.token.is_empty() {
            return Err(Error::invalid("mcp-addr is not a loopback address and there is no mcp.token")
                .hint("set mcp.token, or listen on 127.0.0.1"));
        }
        let limits = Limits { body_bytes: 1 << 20, head: Duration::from_secs(30), ..Limits::default() };
        let mcp = Mcp { world, token: settings.token.expose().to_owned(), local, tools };
        Ok(Self { serving: serve(listener, mcp, limits) })
    }

    /// Accepts nobody any more.
    pub async fn stop(self) {
        self.serving.stop().await;
    }
}

struct Mcp {
    world: World,
    /// Empty: none is asked for.
    token: String,
    /// Only this machine can reach it.
    local: bool,
    tools: Arc<dyn Toolbox>,
}

const SESSION: &str = "mcp-session-id";
const SESSION_PREFIX: &str = "mcp-session-";
/// Versions of the protocol that are spoken, the newest first.
const VERSIONS: [&str; 2] = ["2025-03-26", "2024-11-05"];

/// A JSON-RPC error.
struct Fault(i32, String);

impl Handler for Mcp {
    async fn handle(&self, request: Request) -> Response {
        if let Some(refused) = self.refuse(&request) {
            return refused;
        }
        match request.method {
            Method::POST => self.post(&request).await,
            Method::GET => silent_stream(),
            Method::DELETE => respond(StatusCode::OK, TEXT, ""),
            _ => respond(StatusCode::NOT_FOUND, TEXT, "404 page not found\n"),
        }
    }
}

impl Mcp {
    /// Turns away web pages of elsewhere, and whoever does not know the token.
    fn refuse(&self, request: &Request) -> Option<Response> {
        if self.local && !(names_this_machine(request.header("host")) && is_own_origin(request.header("origin"))) {
            return Some(respond(StatusCode::FORBIDDEN, TEXT, "Host and Origin must name this machine\n"));
        }
        if !self.local && !request.header("origin").is_empty() {
            return Some(respond(StatusCode::FORBIDDEN, TEXT, "requests of web pages are not answered\n"));
        }
        if self.token.is_empty() {
            return None;
        }
        let given = request.header("authorization").strip_prefix("Bearer ").unwrap_or_default();
        if same(given.as_bytes(), self.token.as_bytes()) {
            return None;
        }
        let mut refused = respond(StatusCode::UNAUTHORIZED, TEXT, "a valid bearer token is required\n");
        refused.headers_mut().insert(hyper::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        Some(refused)
    }

    async fn post(&self, request: &Request) -> Response {
        if request.header("content-type") != JSON {
            let text = "Invalid content type: must be 'application/json'\n";
            return respond(StatusCode::BAD_REQUEST, TEXT, text);
        }
        let Ok(Value::Object(message)) = serde_json::from_slice::<Value>(&request.body) else {
            let fault = Fault(-32700, "request body is not valid json".to_owned());
            return reply(StatusCode::BAD_REQUEST, &Value::Null, Err(fault));
        };
        let method = message.get("method").and_then(Value::as_str).unwrap_or_default();
        if method != "initialize" && !is_session(request.header(SESSION)) {
            return respond(StatusCode::BAD_REQUEST, TEXT, "Invalid session ID\n");
        }
        let Some(id) = message.get("id").filter(|id| !id.is_null()) else {
            let mut accepted = respond(StatusCode::ACCEPTED, TEXT, "");
            accepted.headers_mut().remove(CONTENT_TYPE);
            return accepted;
        };
        if message.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
            return reply(StatusCode::OK, id, Err(Fault(-32600, "Invalid JSON-RPC version".to_owned())));
        }
        let parameters = message.get("params").and_then(Value::as_object).cloned().unwrap_or_default();
        let mut response = reply(StatusCode::OK, id, self.dispatch(method, &parameters).await);
        if method == "initialize"
            && let Ok(session) = HeaderValue::from_str(&self.new_session())
        {
            response.headers_mut().insert(SESSION, session);
        }
        response
    }

    async fn dispatch(&self, method: &str, parameters: &Map<String, Value>) -> Result<Value, Fault> {
        match method {
            "initialize" => {
                let asked = parameters.get("protocolVersion").and_then(Value::as_str).unwrap_or_default();
                let version = VERSIONS.into_iter().find(|known| *known == asked).unwrap_or(VERSIONS[0]);
                Ok(json!({
                    "protocolVersion": version,
                    "capabilities": {"logging": {}, "tools": {}},
                    "serverInfo": {"name": "Litestream MCP Server", "version": "1.0.0"},
                }))
            }
            "ping" => Ok(json!({})),
            "tools/list" => Ok(json!({"tools": TOOLS.iter().map(Tool::announced).collect::<Vec<_>>()})),
            "tools/call" => self.call(parameters).await,
            "logging/setLevel" => Err(Fault(-32603, "session does not support setting logging level".to_owned())),
            _ if method.starts_with("resources/") => Err(Fault(-32601, "resources not supported".to_owned())),
            _ if method.starts_with("prompts/") => Err(Fault(-32601, "prompts not supported".to_owned())),
            _ => Err(Fault(-32601, format!("Method {method} not found"))),
        }
    }

    async fn call(&self, parameters: &Map<String, Value>) -> Result<Value, Fault> {
        let name = parameters.get("name").and_then(Value::as_str).unwrap_or_default();
        let Some(tool) = TOOLS.iter().find(|tool| tool.name == name) else {
            return Err(Fault(-32602, format!("tool '{name}' not found: tool not found")));
        };
        let arguments = parameters.get("arguments").and_then(Value::as_object).cloned().unwrap_or_default();
        let tools = Arc::clone(&self.tools);
        let outcome = blocking(move || Ok(tools.call(tool.name, &arguments))).await;
        let outcome = outcome.map_err(|err| Fault(-32603, err.to_string()))?;
        let mut result = json!({"content": [{"type": "text", "text": outcome.text}]});
        if outcome.failed {
            result["isError"] = json!(true);
        }
        Ok(result)
    }

    /// `mcp-session-<uuid v4>`
    fn new_session(&self) -> String {
        let (high, low) = (self.world.random.next_u64(), self.world.random.next_u64());
        let (high, low) = ((high & !0xf000) | 0x4000, (low & !(0b11 << 62)) | (0b10 << 62));
        format!(
            "{SESSION_PREFIX}{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff
        )
    }
}

fn reply(status: StatusCode, id: &Value, result: Result<Value, Fault>) -> Response {
    let body = match result {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err(Fault(code, message)) => {
            json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
        }
    };
    respond(status, JSON, line(&body))
}

/// For messages that the server begins: it never does.
fn silent_stream() -> Response {
    let mut response = Response::new(ResponseBody::Silence);
    *response.status_mut() = StatusCode::ACCEPTED;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

/// Whether a session was made by such a server; which one is not asked.
fn is_session(text: &str) -> bool {
    let Some(id) = text.strip_prefix(SESSION_PREFIX) else { return false };
    let lengths: Vec<usize> = id.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && id.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
}

/// `host[:port]` with a host that is this machine under all circumstances.
fn names_this_machine(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    matches!(host.to_ascii_lowercase().as_str(), "localhost" | "127.0.0.1" | "[::1]" | "")
}

fn is_own_origin(origin: &str) -> bool {
    let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    origin.is_empty() || host.is_some_and(|host| !host.is_empty() && names_this_machine(host))
}

/// Takes the same time wherever they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hyper::HeaderMap;

    use super::*;

    struct Echo;

    impl Toolbox for Echo {
        fn call(&self, tool: &str, arguments: &Map<String, Value>) -> ToolOutcome {
            ToolOutcome { text: format!("{tool} <{}>", arguments.len()), failed: tool == "litestream_reset" }
        }
    }

    fn mcp(token: &str, local: bool) -> Mcp {
        Mcp { world: World::system(), token: token.to_owned(), local, tools: Arc::new(Echo) }
    }

    fn post(headers: &[(&'static str, &str)], body: &str) -> Request {
        let mut map = HeaderMap::new();
        map.insert("content-type", HeaderValue::from_static(JSON));
        map.insert("host", HeaderValue::from_static("127.0.0.1:3001"));
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_str(value).unwrap());
        }
        Request {
            method: Method::POST,
            path: "/any".to_owned(),
            query: String::new(),
            headers: map,
            body: Bytes::copy_from_slice(body.as_bytes()),
        }
    }

    async fn text(response: Response) -> (u16, String) {
        use http_body_util::BodyExt;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    const ANY_SESSION: (&str, &str) = (SESSION, "mcp-session-00000000-0000-4000-8000-000000000000");

    #[tokio::test]
    async fn web_pages_of_elsewhere_are_turned_away() {
        let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
        for (header, value, status) in [
            ("origin", "http://localhost:8080", 200),
            ("origin", "https://evil.example", 403),
            ("origin", "http://localhost.evil.example", 403),
            ("origin", "null", 403),
            ("origin", "http://127.0.0.1@evil.example", 403),
            ("host", "localhost", 200),
            ("host", "[::1]:3001", 200),
            ("host", "rebound.example:3001", 403),
        ] {
            let response = mcp("", true).handle(post(&[(header, value), ANY_SESSION], ping)).await;
            assert_eq!(response.status().as_u16(), status, "{header}: {value}");
        }
    }

    #[tokio::test]
    async fn a_token_is_asked_for_if_there_is_one() {
        let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
        for (given, status) in
            [("Bearer secret", 200), ("Bearer secreT", 401), ("Bearer ", 401), ("secret", 401), ("", 401)]
        {
            for local in [true, false] {
                let response = mcp("secret", local).handle(post(&[("authorization", given), ANY_SESSION], ping)).await;
                assert_eq!(response.status().as_u16(), status, "{given}");
            }
        }
    }

    #[tokio::test]
    async fn a_session_is_begun_and_its_form_is_checked() {
        let server = mcp("", true);
        let hello = r#"{"jsonrpc":"2.0","id":"a","method":"initialize","params":{"protocolVersion":"2026-01-01"}}"#;
        let response = server.handle(post(&[], hello)).await;
        let session = response.headers()[SESSION].to_str().unwrap().to_owned();
        assert!(is_session(&session), "{session}");
        assert!(
            text(response).await.1.starts_with(r#"{"jsonrpc":"2.0","id":"a","result":{"protocolVersion":"2025-03-26""#)
        );
        let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
        assert_eq!(text(server.handle(post(&[], list)).await).await, (400, "Invalid session ID\n".to_owned()));
        let (status, tools) = text(server.handle(post(&[(SESSION, &session)], list)).await).await;
        let tools: Value = serde_json::from_str(&tools).unwrap();
        assert_eq!((status, tools["result"]["tools"].as_array().unwrap().len()), (200, TOOLS.len()));
    }

    #[tokio::test]
    async fn tools_are_called_and_failures_marked() {
        let server = mcp("", true);
        let call = |name: &str| {
            format!(
                r#"{{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{{"name":"{name}","arguments":{{"a":1}}}}}}"#
            )
        };
        for (name, want) in [
            (
                "litestream_version",
                r#""result":{"content":[{"type":"text","text":"litestream_version \u003c1\u003e"}]}}"#,
            ),
            (
                "litestream_reset",
                r#""result":{"content":[{"type":"text","text":"litestream_reset \u003c1\u003e"}],"isError":true}}"#,
            ),
            ("nope", r#""error":{"code":-32602,"message":"tool 'nope' not found: tool not found"}}"#),
        ] {
            let (_, said) = text(server.handle(post(&[ANY_SESSION], &call(name))).await).await;
            assert_eq!(said, format!("{{\"jsonrpc\":\"2.0\",\"id\":2,{want}\n"));
        }
    }

    #[tokio::test]
    async fn notifications_are_accepted_in_silence() {
        let note = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        assert_eq!(text(mcp("", true).handle(post(&[ANY_SESSION], note)).await).await, (202, String::new()));
        for bad in ["junk", "[]", "", "[[[["] {
            assert_eq!(text(mcp("", true).handle(post(&[ANY_SESSION], bad)).await).await.0, 400, "{bad}");
        }
    }
}
