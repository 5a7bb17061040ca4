//! Google Cloud Storage beyond the common suite. Needs the servers of `tests/servers/gs.sh`.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use litestream::config::{self, Environment, ReplicaKind, Surroundings};
use litestream::error::{Error, ErrorKind};
use litestream::replica::gs::GsClient;
use litestream::replica::requests::Operation;
use litestream::replica::{Key, PutOptions, ReplicaClient, Stamps, once};
use litestream::sys::{Clock, SystemClock, World};
use litestream::types::Timestamp;

/// The words of `LITESTREAM_TEST_GS`.
#[derive(Clone)]
struct Server {
    host: String,
    bucket: String,
    strict: String,
}

impl Server {
    fn find() -> Self {
        let line = std::env::var("LITESTREAM_TEST_GS").expect("run this below tests/servers/gs.sh");
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        let [host, bucket, strict, _, _] = words.try_into().unwrap();
        Self { host, bucket, strict }
    }

    /// A client as a configuration makes it.
    fn client_at(&self, path: &str) -> GsClient {
        let world = World::system();
        let env = Environment::new([("STORAGE_EMULATOR_HOST".to_owned(), self.host.clone())], PathBuf::from("/"));
        let around = Surroundings { env: &env, fs: world.fs.as_ref() };
        let text = format!(
            "dbs:\n  - path: /x.db\n    replica:\n      type: gs\n      bucket: {}\n      path: {path}\n",
            self.bucket
        );
        let config = config::parse(&text, around).unwrap();
        let ReplicaKind::Gs(settings) = config.dbs[0].build(around).unwrap().replica.kind else {
            panic!("not a GCS replica")
        };
        GsClient::new(settings, world)
    }
}

/// A path nobody used before.
fn unused(path: &str) -> String {
    format!("{path}-{:?}", SystemClock::new().now()).replace(|c: char| !c.is_ascii_alphanumeric(), "-")
}

pub(crate) fn client(case: &str) -> GsClient {
    Server::find().client_at(&unused(case))
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn opts(size: Option<u64>) -> PutOptions {
    PutOptions { stamp: Timestamp::from_millis(1_795_221_709_248), size, modes: None, exclusive: false }
}

async fn read(client: &GsClient, name: &str) -> Vec<u8> {
    let chunks: Vec<Bytes> = client.get(&key(name), None).await.unwrap().try_collect().await.unwrap();
    chunks.concat()
}

/// List and put of a client that cannot work: both must say so soon.
async fn refusals(client: &GsClient) -> [Error; 2] {
    let asked = async {
        let listed: Result<Vec<_>, _> = client.list(&key("ltx/0"), None, Stamps::Cheap).try_collect().await;
        let put = client.put(&key("ltx/0/a"), once("x"), opts(None)).await;
        [listed.unwrap_err(), put.unwrap_err()]
    };
    tokio::time::timeout(Duration::from_secs(5), asked).await.unwrap()
}

/// Each is told apart by its code and says what to do, within seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of tests/servers/gs.sh"]
async fn what_is_wrong_is_said_at_once() {
    let good = Server::find();
    let no_bucket = Server { bucket: "no-such-bucket".to_owned(), ..good.clone() };
    let no_token = Server { host: good.strict.clone(), ..good.clone() };
    for (server, word, kind) in
        [(no_bucket, "bucket does not exist", ErrorKind::Invalid), (no_token, "Error 401", ErrorKind::PermissionDenied)]
    {
        for err in refusals(&server.client_at("wrong")).await {
            let text = err.to_string();
            assert!(text.contains(word), "{text}");
            assert_eq!(err.kind(), kind, "{text}");
            assert!(err.hint_text().is_some(), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of tests/servers/gs.sh"]
async fn a_hundred_megabytes_go_in_chunks_and_come_back() {
    let client = client("chunks");
    let chunk =
        Bytes::from((0..1_000_003_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>());
    let body: Vec<_> = (0..105).map(|_| Ok(chunk.clone())).collect();
    let size = 105 * chunk.len() as u64;
    // Of unknown size, like a compaction.
    client.put(&key("ltx/1/big"), stream::iter(body).boxed(), opts(None)).await.unwrap();
    let listed: Vec<_> = client.list(&key("ltx/1"), None, Stamps::Exact).try_collect().await.unwrap();
    assert_eq!((listed[0].size, listed[0].modified), (size, opts(None).stamp));
    let got = read(&client, "ltx/1/big").await;
    assert_eq!(got.len() as u64, size);
    assert!(got.chunks(chunk.len()).all(|piece| piece == chunk));
    assert!(client.stats().count(Operation::Put).0 > 12);
    let again: Vec<_> = (0..10).map(|_| Ok(chunk.clone())).collect();
    let exclusive = PutOptions { exclusive: true, ..opts(None) };
    let err = client.put(&key("ltx/1/big"), stream::iter(again).boxed(), exclusive).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Exists);
}

/// The last chunk may be a whole one: its size alone does not say that it is the last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of tests/servers/gs.sh"]
async fn sizes_around_a_chunk_are_exact() {
    let client = client("edges");
    for size in [(8 << 20) - 1, 8 << 20, (8 << 20) + 1, 16 << 20] {
        for said in [None, Some(size as u64)] {
            let meta = client.put(&key("ltx/1/edge"), once(vec![5_u8; size]), opts(said)).await.unwrap();
            assert_eq!(meta.size, size as u64);
            assert_eq!(read(&client, "ltx/1/edge").await.len(), size);
        }
    }
}
