//! Azure Blob Storage beyond the common suite. Needs the server of `tests/servers/abs.sh`.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use litestream::config::{self, Environment, ReplicaKind, Surroundings};
use litestream::error::ErrorKind;
use litestream::replica::abs::AbsClient;
use litestream::replica::requests::Operation;
use litestream::replica::{Key, PutOptions, ReplicaClient, Stamps, once};
use litestream::sys::{Clock, SystemClock, World};
use litestream::types::Timestamp;

/// The words of `LITESTREAM_TEST_ABS`.
#[derive(Clone)]
struct Server {
    endpoint: String,
    account: String,
    key: String,
    container: String,
    sas: String,
}

impl Server {
    fn find() -> Self {
        let line = std::env::var("LITESTREAM_TEST_ABS").expect("run this below tests/servers/abs.sh");
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        let [endpoint, account, key, container, sas, _, _] = words.try_into().unwrap();
        Self { endpoint, account, key, container, sas }
    }

    /// A client as a configuration makes it. `login` are its lines of credentials.
    fn client_at(&self, path: &str, login: &str, env: &[(&str, &str)]) -> AbsClient {
        let world = World::system();
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let env = Environment::new(env, PathBuf::from("/"));
        let around = Surroundings { env: &env, fs: world.fs.as_ref() };
        let text = format!(
            "dbs:\n  - path: /x.db\n    replica:\n      type: abs\n      bucket: {}\n      path: {path}\n      endpoint: \
             {}\n{login}",
            self.container, self.endpoint
        );
        let config = config::parse(&text, around).unwrap();
        let ReplicaKind::Abs(settings) = config.dbs[0].build(around).unwrap().replica.kind else {
            panic!("not an Azure replica")
        };
        AbsClient::new(settings, world)
    }

    fn shared_key(&self) -> String {
        format!("      account-name: {}\n      account-key: {}\n", self.account, self.key)
    }
}

/// A path nobody used before.
fn unused(path: &str) -> String {
    format!("{path}-{:?}", SystemClock::new().now()).replace(|c: char| !c.is_ascii_alphanumeric(), "-")
}

pub(crate) fn client(case: &str) -> AbsClient {
    let server = Server::find();
    server.client_at(&unused(case), &server.shared_key(), &[])
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn opts(size: Option<u64>) -> PutOptions {
    PutOptions { stamp: Timestamp::from_millis(1_795_221_709_248), size, modes: None, exclusive: false }
}

async fn read(client: &AbsClient, name: &str) -> Vec<u8> {
    let chunks: Vec<Bytes> = client.get(&key(name), None).await.unwrap().try_collect().await.unwrap();
    chunks.concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the server of tests/servers/abs.sh"]
async fn a_token_or_a_connection_string_is_enough() {
    let server = Server::find();
    let path = unused("login");
    let writer = server.client_at(&path, &server.shared_key(), &[]);
    writer.put(&key("ltx/0/a"), once("x"), opts(None)).await.unwrap();

    let sas = format!("      sas-token: '?{}'\n", server.sas);
    let string =
        format!("AccountName={};AccountKey={};BlobEndpoint=http://nowhere.invalid", server.account, server.key);
    let by_string = server.client_at(&path, "", &[("AZURE_STORAGE_CONNECTION_STRING", &string)]);
    for client in [server.client_at(&path, &sas, &[]), by_string] {
        assert_eq!(read(&client, "ltx/0/a").await, b"x");
        let listed: Vec<_> = client.list(&key("ltx/0"), None, Stamps::Cheap).try_collect().await.unwrap();
        assert_eq!((listed.len(), listed[0].modified), (1, opts(None).stamp));
        client.put(&key("ltx/1/b"), once("y"), opts(None)).await.unwrap();
        client.put(&key("ltx/1/big"), once(vec![7_u8; 9_000_000]), opts(None)).await.unwrap();
        assert_eq!(read(&client, "ltx/1/big").await.len(), 9_000_000);
        client.delete(&[key("ltx/1/b"), key("ltx/1/big")]).await.unwrap();
    }
}

/// Each is told apart by its code and says what to do, within seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the server of tests/servers/abs.sh"]
async fn what_is_wrong_is_said_at_once() {
    let good = Server::find();
    let wrong_key = Server { key: "bm90IHRoZSBrZXk=".to_owned(), ..good.clone() };
    let no_container = Server { container: "no-such-container".to_owned(), ..good.clone() };
    let no_account = Server { account: "nobody".to_owned(), ..good.clone() };
    let cases = [
        (wrong_key.client_at("w", &wrong_key.shared_key(), &[]), "Auth", ErrorKind::PermissionDenied),
        (no_account.client_at("w", &no_account.shared_key(), &[]), "Auth", ErrorKind::PermissionDenied),
        (no_container.client_at("w", &good.shared_key(), &[]), "ContainerNotFound", ErrorKind::Invalid),
        (good.client_at("w", "      sas-token: sv=2021-12-02&sig=AAAA\n", &[]), "Auth", ErrorKind::PermissionDenied),
        (good.client_at("w", "", &[]), "non TLS protected", ErrorKind::Invalid),
    ];
    for (client, word, kind) in cases {
        let asked = async {
            let listed: Result<Vec<_>, _> = client.list(&key("ltx/0"), None, Stamps::Cheap).try_collect().await;
            let put = client.put(&key("ltx/0/a"), once("x"), opts(None)).await;
            [listed.unwrap_err(), put.unwrap_err()]
        };
        for err in tokio::time::timeout(Duration::from_secs(5), asked).await.unwrap() {
            let text = err.to_string();
            assert!(text.contains(word), "{text}");
            assert_eq!(err.kind(), kind, "{text}");
            assert!(err.hint_text().is_some(), "{text}");
            assert!(!text.contains(&good.key) && !text.contains("AAAA"), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the server of tests/servers/abs.sh"]
async fn a_hundred_megabytes_go_in_blocks_and_come_back() {
    let client = client("blocks");
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
    assert!(client.stats().count(Operation::Put).0 > 20);
    // Conditions hold for block lists, too.
    let again: Vec<_> = (0..6).map(|_| Ok(chunk.clone())).collect();
    let exclusive = PutOptions { exclusive: true, ..opts(None) };
    let err = client.put(&key("ltx/1/big"), stream::iter(again).boxed(), exclusive).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Exists);
}
