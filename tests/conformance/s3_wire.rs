//! The first requests of every recorded configuration, beside those the reference sent (`wire` in
//! `tests/fixtures/config`): method, scheme, host, path, query, region, access key, and the headers that matter.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_types::body::SdkBody;
use futures::TryStreamExt;
use litestream::config::{self, Environment, ReplicaKind, S3Settings, Surroundings};
use litestream::error::Result;
use litestream::replica::s3::S3Client;
use litestream::replica::{Key, ReplicaClient, Stamps};
use litestream::sys::World;
use serde_json::Value;

/// Remembers requests and answers like an empty bucket.
#[derive(Debug, Clone, Default)]
struct Recorder(Arc<Mutex<Vec<HttpRequest>>>);

impl HttpConnector for Recorder {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let location = request.uri().contains("location");
        self.0.lock().unwrap().push(request);
        let body = match location {
            true => {
                "<LocationConstraint xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">eu-central-1</LocationConstraint>"
            }
            false => "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>",
        };
        HttpConnectorFuture::ready(Ok(HttpResponse::new(200.try_into().unwrap(), SdkBody::from(body))))
    }
}

impl Recorder {
    fn client(&self) -> SharedHttpClient {
        let connector = SharedHttpConnector::new(self.clone());
        http_client_fn(move |_, _| connector.clone())
    }
}

/// What is compared; its `Debug` text is what a failing test shows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    method: String,
    scheme: String,
    host: String,
    path: String,
    query: BTreeSet<String>,
    access_key: String,
    region: String,
    unsigned: bool,
    tigris: Option<String>,
    token: bool,
}

fn recorded(request: &Value) -> Line {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let headers = &request["headers"];
    Line {
        method: text(&request["method"]),
        scheme: text(&request["scheme"]),
        host: text(&request["host"]),
        path: text(&request["path"]),
        query: parameters(request["query"].as_str().unwrap()),
        access_key: text(&request["authorization"]["access_key"]),
        region: text(&request["authorization"]["region"]),
        unsigned: headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD",
        tigris: headers["x-tigris-consistent"].as_str().map(str::to_owned),
        token: !headers["x-amz-security-token"].is_null(),
    }
}

fn ours(request: &HttpRequest) -> Line {
    let (scheme, rest) = request.uri().split_once("://").unwrap();
    let (host, rest) = rest.split_once('/').unwrap_or((rest, ""));
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let header = |name: &str| request.headers().get(name).map(str::to_owned);
    let authorization = header("authorization").unwrap();
    let scope = authorization.split("Credential=").nth(1).unwrap().split(',').next().unwrap();
    let scope: Vec<&str> = scope.split('/').collect();
    Line {
        method: request.method().to_owned(),
        scheme: scheme.to_owned(),
        // Never sent, nor signed.
        host: host.strip_suffix(":443").unwrap_or(host).to_owned(),
        path: format!("/{path}"),
        query: parameters(query),
        access_key: scope[0].to_owned(),
        region: scope[2].to_owned(),
        unsigned: header("x-amz-content-sha256").as_deref() == Some("UNSIGNED-PAYLOAD"),
        tigris: header("x-tigris-consistent"),
        token: header("x-amz-security-token").is_some(),
    }
}

/// The SDK names the operation in the query; no service looks at that.
fn parameters(query: &str) -> BTreeSet<String> {
    query
        .split('&')
        .filter(|p| !p.is_empty() && !p.starts_with("x-id="))
        .map(|p| p.strip_suffix('=').unwrap_or(p).to_owned())
        .collect()
}

/// `/bkt/` and `/bkt` are the same resource; the SDKs differ.
fn same_path(a: &str, b: &str) -> bool {
    a.trim_end_matches('/') == b.trim_end_matches('/')
}

#[tokio::test]
async fn requests_are_those_of_the_reference() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/config/valid");
    let mut names: Vec<PathBuf> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    let (mut compared, mut wrong) = (0, Vec::new());
    for expect in names.iter().filter(|path| path.to_string_lossy().ends_with(".expect.json")) {
        let name = expect.file_name().unwrap().to_string_lossy().replace(".expect.json", "");
        let case: Value = serde_json::from_slice(&std::fs::read(expect).unwrap()).unwrap();
        // The SDK reads this variable from the process itself, where a test cannot set it.
        if !name.starts_with("s3-") || case["wire"].is_null() || name == "s3-env-endpoint-url" {
            continue;
        }
        let text = std::fs::read_to_string(dir.join(format!("{name}.yml"))).unwrap();
        for (db, requests) in case["wire"].as_object().unwrap() {
            let want: Vec<Line> =
                requests.as_array().unwrap().iter().filter(|r| r["exit"].is_null()).map(recorded).collect();
            let sent = Recorder::default();
            list_first(&case, &text, db, &sent).await;
            let got: Vec<Line> = sent.0.lock().unwrap().iter().map(ours).take(want.len()).collect();
            let same = got.len() == want.len()
                && got.iter().zip(&want).all(|(got, want)| {
                    same_path(&got.path, &want.path) && got == &Line { path: got.path.clone(), ..want.clone() }
                });
            if !same {
                wrong.push(format!("{name} {db}\n  sent     {got:?}\n  recorded {want:?}"));
            }
            compared += 1;
        }
    }
    assert!(wrong.is_empty(), "{} of {compared}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(compared >= 55, "{compared}");
}

async fn list_first(case: &Value, text: &str, db: &str, sent: &Recorder) {
    let mut vars: Vec<(String, String)> = case["env"]
        .as_object()
        .map(|env| env.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())).collect())
        .unwrap_or_default();
    // What the program does before anything else (`spec: config` §1.1).
    for key in ["ACCESS_KEY_ID", "SECRET_ACCESS_KEY"] {
        let value = |name: String| vars.iter().find(|(k, _)| *k == name).map(|(_, v)| v.clone());
        if let (None, Some(copy)) = (value(format!("AWS_{key}")), value(format!("LITESTREAM_{key}"))) {
            vars.push((format!("AWS_{key}"), copy));
        }
    }
    let env = Environment::new(vars, PathBuf::from("/"));
    let world = World::system();
    let around = Surroundings { env: &env, fs: world.fs.as_ref() };
    let settings = settings(&env.expand(text), db, around);
    let client = S3Client::with_http(settings, world, Some(sent.client()));
    let dir = Key::new("0000").unwrap();
    let found: Result<Vec<_>> = client.list(&dir, None, Stamps::Cheap).try_collect().await;
    assert!(found.unwrap().is_empty());
}

/// The settings of a database's replica in a configuration.
fn settings(text: &str, db: &str, around: Surroundings<'_>) -> S3Settings {
    let config = config::parse(text, around).unwrap();
    let entry = config.dbs.iter().find(|entry| entry.path().is_some_and(|path| path == Path::new(db)));
    match entry.unwrap().build(around).unwrap().replica.kind {
        ReplicaKind::S3(settings) => *settings,
        _ => panic!("not an S3 replica"),
    }
}
