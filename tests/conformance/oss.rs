//! Alibaba Cloud OSS beyond the common suite. Needs the server of `tests/servers/oss.sh`.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use litestream::config::{self, Environment, ReplicaKind, Surroundings};
use litestream::error::ErrorKind;
use litestream::replica::oss::OssClient;
use litestream::replica::requests::Operation;
use litestream::replica::{Key, PutOptions, ReplicaClient, Stamps, once};
use litestream::sys::{Clock, SystemClock, World};
use litestream::types::Timestamp;

/// The words of `LITESTREAM_TEST_OSS`.
#[derive(Clone)]
struct Server {
    endpoint: String,
    bucket: String,
    access: String,
    secret: String,
    region: String,
}

impl Server {
    fn find() -> Self {
        let line = std::env::var("LITESTREAM_TEST_OSS").expect("run this below tests/servers/oss.sh");
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        let [endpoint, bucket, access, secret, region, _, _] = words.try_into().unwrap();
        Self { endpoint, bucket, access, secret, region }
    }

    /// A client as a configuration makes it.
    fn client_at(&self, path: &str) -> OssClient {
        let world = World::system();
        let env = Environment::new([], PathBuf::from("/"));
        let around = Surroundings { env: &env, fs: world.fs.as_ref() };
        let text = format!(
            "dbs:\n  - path: /x.db\n    replica:\n      type: oss\n      bucket: {}\n      path: {path}\n      endpoint: \
             {}\n      region: {}\n      access-key-id: {}\n      secret-access-key: {}\n",
            self.bucket, self.endpoint, self.region, self.access, self.secret
        );
        let config = config::parse(&text, around).unwrap();
        let ReplicaKind::Oss(settings) = config.dbs[0].build(around).unwrap().replica.kind else {
            panic!("not an OSS replica")
        };
        OssClient::new(settings, world)
    }
}

/// A path nobody used before.
fn unused(path: &str) -> String {
    format!("{path}-{:?}", SystemClock::new().now()).replace(|c: char| !c.is_ascii_alphanumeric(), "-")
}

pub(crate) fn client(case: &str) -> OssClient {
    Server::find().client_at(&unused(case))
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn opts(size: Option<u64>) -> PutOptions {
    PutOptions { stamp: Timestamp::from_millis(1_795_221_709_248), size, modes: None, exclusive: false }
}

async fn read(client: &OssClient, name: &str) -> Vec<u8> {
    let chunks: Vec<Bytes> = client.get(&key(name), None).await.unwrap().try_collect().await.unwrap();
    chunks.concat()
}

/// Keys are what the path says, byte for byte, and the signature covers them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the server of tests/servers/oss.sh"]
async fn odd_paths_are_kept_as_they_are() {
    let server = Server::find();
    for path in ["'.'", "a/./b", "'sp ace+plus%41~!*()'", "''"] {
        let client = server.client_at(path);
        client.put(&key("0000/k"), once(path.to_owned()), opts(None)).await.unwrap();
        let listed: Vec<_> = client.list(&key("0000"), None, Stamps::Exact).try_collect().await.unwrap();
        assert_eq!((listed.len(), listed[0].modified), (1, opts(None).stamp), "{path}");
        assert_eq!(read(&client, "0000/k").await, path.as_bytes());
        client.delete(&[key("0000/k")]).await.unwrap();
    }
}

/// Each is told apart by its code and says what to do, within seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the server of tests/servers/oss.sh"]
async fn what_is_wrong_is_said_at_once() {
    let good = Server::find();
    let cases = [
        (Server { secret: "wrong".to_owned(), ..good.clone() }, "SignatureDoesNotMatch", ErrorKind::PermissionDenied),
        (Server { access: "NOBODY".to_owned(), ..good.clone() }, "InvalidAccessKeyId", ErrorKind::PermissionDenied),
        (Server { bucket: "no-such-bucket".to_owned(), ..good.clone() }, "NoSuchBucket", ErrorKind::Invalid),
        (Server { region: "cn-beijing".to_owned(), ..good.clone() }, "InvalidArgument", ErrorKind::Invalid),
    ];
    for (server, code, kind) in cases {
        let client = server.client_at("wrong");
        let asked = async {
            let listed: Result<Vec<_>, _> = client.list(&key("0000"), None, Stamps::Cheap).try_collect().await;
            let put = client.put(&key("0000/a"), once("x"), opts(None)).await;
            [listed.unwrap_err(), put.unwrap_err()]
        };
        for err in tokio::time::timeout(Duration::from_secs(5), asked).await.unwrap() {
            let text = err.to_string();
            assert!(text.contains(code), "{text}");
            assert_eq!(err.kind(), kind, "{text}");
            assert!(err.hint_text().is_some(), "{text}");
            assert!(!text.contains(&good.secret), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the server of tests/servers/oss.sh"]
async fn a_hundred_megabytes_go_in_parts_and_come_back() {
    let client = client("parts");
    let chunk =
        Bytes::from((0..1_000_003_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>());
    let body: Vec<_> = (0..105).map(|_| Ok(chunk.clone())).collect();
    let size = 105 * chunk.len() as u64;
    // Of unknown size, like a compaction.
    client.put(&key("0001/big"), stream::iter(body).boxed(), opts(None)).await.unwrap();
    let listed: Vec<_> = client.list(&key("0001"), None, Stamps::Exact).try_collect().await.unwrap();
    assert_eq!((listed[0].size, listed[0].modified), (size, opts(None).stamp));
    let got = read(&client, "0001/big").await;
    assert_eq!(got.len() as u64, size);
    assert!(got.chunks(chunk.len()).all(|piece| piece == chunk));
    assert!(client.stats().count(Operation::Put).0 > 15);
    let again: Vec<_> = (0..8).map(|_| Ok(chunk.clone())).collect();
    let exclusive = PutOptions { exclusive: true, ..opts(None) };
    let err = client.put(&key("0001/big"), stream::iter(again).boxed(), exclusive).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Exists);
}
