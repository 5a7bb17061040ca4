//! NATS beyond the common suite: ways to log in, what is wrong, several databases in a bucket, lost connections. Needs
//! the servers of `tests/servers/nats.sh`.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::{StreamExt, TryStreamExt};
use litestream::config::ReplicaKind;
use litestream::error::{ErrorKind, Result};
use litestream::replica::nats::NatsClient;
use litestream::replica::requests::Operation;
use litestream::replica::{Key, ObjectMeta, PutOptions, ReplicaClient, Stamps, once};
use litestream::sys::World;
use litestream::types::Timestamp;

use super::proxy::Line;
use super::settings::{replica, unique};

const USER: &str = "username: ls\npassword: lsPass-1";

/// A line of `LITESTREAM_TEST_NATS`.
fn url(name: &str) -> String {
    let all = std::env::var("LITESTREAM_TEST_NATS").expect("run this below tests/servers/nats.sh");
    let line = all.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no server {name}")).to_owned()
}

fn file(name: &str) -> String {
    format!("{}/{name}", std::env::var("LITESTREAM_TEST_NATS_DIR").unwrap())
}

fn text_of(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap().trim().to_owned()
}

fn at(url: &str, keys: &str) -> NatsClient {
    let ReplicaKind::Nats(settings) = replica(&format!("url: {url}\n{keys}"), &[]) else {
        panic!("not a NATS replica")
    };
    NatsClient::new(*settings, World::system())
}

/// A client below a prefix nobody used before.
pub(crate) fn client(name: &str) -> NatsClient {
    at(&format!("{}/litestream/{}", url("password"), unique(name)), USER)
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn opts() -> PutOptions {
    PutOptions { stamp: Timestamp::from_millis(1_795_221_709_248), size: None, modes: None, exclusive: false }
}

async fn list(client: &NatsClient, dir: &str) -> Result<Vec<ObjectMeta>> {
    client.list(&key(dir), None, Stamps::Cheap).try_collect().await
}

async fn works(client: &NatsClient) {
    client.put(&key("ltx/0/a"), once("x"), opts()).await.unwrap();
    assert_eq!(list(client, "ltx/0").await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of tests/servers/nats.sh"]
async fn every_way_to_log_in_works() {
    let (seed, public) = (text_of("nkey.seed"), text_of("nkey.pub"));
    for (server, keys) in [
        ("password", USER.to_owned()),
        ("token", "token: tokenTest-1".to_owned()),
        ("nkey", format!("nkey: {seed}")),
        ("nkey", format!("nkey: {public}\nseed: {seed}")),
        ("jwt", format!("creds: {}", file("user.creds"))),
        ("jwt", format!("jwt: {}\nseed: {}", text_of("user.jwt"), text_of("user.seed"))),
        (
            "tls",
            format!(
                "{USER}\nroot-cas: [{}]\nclient-cert: {}\nclient-key: {}",
                file("ca.pem"),
                file("client.pem"),
                file("client.key")
            ),
        ),
    ] {
        works(&at(&format!("{}/litestream/{}", url(server), unique("login")), &keys)).await;
    }
}

/// Each is told apart and says what to do, within seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of tests/servers/nats.sh"]
async fn what_is_wrong_is_said_at_once() {
    let pair = format!("client-cert: {}\nclient-key: {}", file("client.pem"), file("client.key"));
    let denied = ErrorKind::PermissionDenied;
    for (server, bucket, keys, want, kind) in [
        ("password", "litestream", "username: ls\npassword: wrong-One".to_owned(), "Authorization Violation", denied),
        ("password", "litestream", String::new(), "Authorization Violation", denied),
        ("token", "litestream", "token: wrong-One".to_owned(), "Authorization Violation", denied),
        ("password", "absent", USER.to_owned(), "nats: bucket not found", ErrorKind::Invalid),
        ("password", "bad.name", USER.to_owned(), "nats: invalid object-store name", ErrorKind::Invalid),
        ("nkey", "litestream", format!("nkey: {}", text_of("nkey.pub")), "without a signature handler", denied),
        ("jwt", "litestream", "creds: /no/such/file".to_owned(), "nats: open /no/such/file", denied),
        ("tls", "litestream", format!("{USER}\nroot-cas: [{}]\n{pair}", file("other-ca.pem")), "certificate", denied),
        ("tls", "litestream", format!("{USER}\nroot-cas: [/no/such/ca]\n{pair}"), "rootCA file", denied),
    ] {
        let client = at(&format!("{}/{bucket}", url(server)), &keys);
        let asked = async {
            let put = client.put(&key("ltx/0/a"), once("x"), opts()).await;
            [list(&client, "ltx/0").await.unwrap_err(), put.unwrap_err()]
        };
        for err in tokio::time::timeout(Duration::from_secs(10), asked).await.unwrap() {
            let text = err.to_string();
            assert!(text.contains(want), "{server} {bucket}: {text}");
            assert_eq!(err.kind(), kind, "{text}");
            assert!(err.hint_text().is_some() || want.contains("rootCA"), "{text}");
            assert!(!text.contains("wrong-One"), "{text}");
        }
    }
    // A user that may read and not write.
    let reader = at(&format!("{}/litestream/reader", url("password")), "username: reader\npassword: lsPass-1");
    assert!(list(&reader, "ltx/0").await.unwrap().is_empty());
    let name = key("ltx/0/a");
    let put = reader.put(&name, once("x"), opts());
    let err = tokio::time::timeout(Duration::from_secs(15), put).await.unwrap().unwrap_err();
    assert_eq!(err.kind(), denied, "{err}");
    assert!(err.to_string().to_lowercase().contains("permissions violation"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of tests/servers/nats.sh"]
async fn several_databases_share_a_bucket() {
    let base = format!("{}/second", url("password"));
    let (one, two) = (at(&format!("{base}/one"), USER), at(&format!("{base}/two/deep"), USER));
    works(&one).await;
    works(&two).await;
    two.put(&key("ltx/0/b"), once("y"), opts()).await.unwrap();
    assert_eq!(list(&one, "ltx/0").await.unwrap().len(), 1);
    assert_eq!(list(&two, "ltx/0").await.unwrap().len(), 2);
    // The bucket's own database sees neither.
    assert!(list(&at(&base, USER), "ltx/0").await.unwrap().is_empty());
}

/// Ten levels listed at once are two looks at the bucket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of tests/servers/nats.sh"]
async fn listings_at_the_same_time_share_one() {
    let client = client("economy");
    client.init().await.unwrap();
    client.put(&key("ltx/0/a"), once("x"), opts()).await.unwrap();
    assert_eq!(client.stats().count(Operation::Put), (1, 0));
    let dirs: Vec<String> = (0..10).map(|level| format!("ltx/{level}")).collect();
    let listings = futures::future::join_all(dirs.iter().map(|dir| list(&client, dir))).await;
    assert_eq!(listings.iter().map(|listed| listed.as_ref().unwrap().len()).sum::<usize>(), 1);
    let (looks, _) = client.stats().count(Operation::List);
    assert!(looks <= 2, "{looks}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of tests/servers/nats.sh"]
async fn a_lost_connection_is_mended() {
    let line = Line::to(url("password").rsplit("//").next().unwrap()).await;
    let prefix = unique("cut");
    let client =
        at(&format!("nats://{}/litestream/{prefix}", line.address()), &format!("{USER}\nreconnect-wait: 100ms"));
    works(&client).await;
    for round in 0..5 {
        line.cut();
        client.put(&key(&format!("ltx/1/{round}")), once("x"), opts()).await.unwrap();
    }
    assert_eq!(list(&client, "ltx/1").await.unwrap().len(), 5);
    assert!(line.connections() >= 3, "{}", line.connections());

    let chunk = Bytes::from(vec![7_u8; 1 << 20]);
    let (tx, rx) = futures::channel::mpsc::unbounded();
    let put = tokio::spawn({
        let client = client.clone();
        async move { client.put(&key("ltx/2/big"), rx.boxed(), opts()).await }
    });
    for n in 0..40 {
        if n == 30 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            line.cut();
        }
        let _ = tx.unbounded_send(Ok(chunk.clone()));
    }
    drop(tx);
    // Whether the connection was mended in time or not: all or nothing.
    let put = tokio::time::timeout(Duration::from_secs(40), put).await.unwrap().unwrap();
    let listed = list(&client, "ltx/2").await.unwrap();
    match put {
        Ok(_) => {
            let body: Vec<Bytes> = client.get(&key("ltx/2/big"), None).await.unwrap().try_collect().await.unwrap();
            assert_eq!(body.concat().len(), 40 << 20);
        }
        Err(err) => {
            assert!(err.is_transient(), "{err}");
            assert!(listed.is_empty());
        }
    }
    works(&client).await;
}
