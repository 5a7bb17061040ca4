//! WebDAV beyond the common suite: ways to log in, what is wrong, exclusive puts, lost connections. Needs the servers of
//! `tests/servers/webdav.sh`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use litestream::config::ReplicaKind;
use litestream::error::{ErrorKind, Result};
use litestream::replica::requests::Operation;
use litestream::replica::webdav::WebdavClient;
use litestream::replica::{Key, ObjectMeta, PutOptions, ReplicaClient, Stamps, once};
use litestream::sys::World;
use litestream::types::Timestamp;

use super::proxy::Line;
use super::settings::{replica, unique};

/// A line of `LITESTREAM_TEST_WEBDAV`.
pub(crate) struct Server {
    url: String,
    user: String,
    password: String,
}

impl Server {
    pub(crate) fn named(name: &str) -> Self {
        let all = std::env::var("LITESTREAM_TEST_WEBDAV").expect("run this below tests/servers/webdav.sh");
        let line = all.lines().find(|line| line.split(' ').next() == Some(name));
        let words: Vec<_> = line.unwrap_or_else(|| panic!("no server {name}")).split(' ').map(str::to_owned).collect();
        let [_, url, user, password] = words.try_into().unwrap();
        Self { url, user, password }
    }

    /// A client below a collection nobody used before.
    pub(crate) fn client(&self, name: &str) -> WebdavClient {
        self.client_at(&format!("/{}", unique(name)))
    }

    fn client_at(&self, path: &str) -> WebdavClient {
        let Self { url, user, password } = self;
        let text = format!(
            "type: webdav\nwebdav-url: {url}\nwebdav-username: {user}\nwebdav-password: '{password}'\npath: '{path}'"
        );
        let ReplicaKind::Webdav(settings) = replica(&text, &[]) else { panic!("not a WebDAV replica") };
        WebdavClient::new(settings, World::system())
    }

    /// The same server at the end of a line that can be cut.
    async fn behind_a_line(mut self) -> (Self, Line) {
        let line = Line::to(self.url.rsplit("//").next().unwrap()).await;
        self.url = format!("http://{}", line.address());
        (self, line)
    }
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn opts(size: Option<u64>) -> PutOptions {
    PutOptions { stamp: Timestamp::from_millis(1_795_221_709_248), size, modes: None, exclusive: false }
}

async fn list(client: &WebdavClient, dir: &str) -> Result<Vec<ObjectMeta>> {
    client.list(&key(dir), None, Stamps::Cheap).try_collect().await
}

async fn works(client: &WebdavClient) {
    client.put(&key("ltx/0/a"), once("x"), opts(None)).await.unwrap();
    assert_eq!(list(client, "ltx/0").await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of tests/servers/webdav.sh"]
async fn paths_with_odd_letters_are_kept() {
    for name in ["basic", "digest", "nginx", "rclone"] {
        let server = Server::named(name);
        for path in ["/a b+c/é%41", "x//y/./z/../"] {
            let client = server.client_at(&format!("{}/{path}", unique("odd")));
            works(&client).await;
        }
    }
}

/// Each is told apart and says what to do, within seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of tests/servers/webdav.sh"]
async fn what_is_wrong_is_said_at_once() {
    let asked = async |server: &Server| {
        let client = server.client("wrong");
        let both = async {
            let put = client.put(&key("ltx/0/a"), once("x"), opts(None)).await;
            [list(&client, "ltx/0").await.unwrap_err(), put.unwrap_err()]
        };
        tokio::time::timeout(Duration::from_secs(10), both).await.unwrap()
    };
    for name in ["basic", "digest", "nginx", "rclone"] {
        for server in [
            Server { password: "wrong-One".to_owned(), ..Server::named(name) },
            Server { user: "nobody".to_owned(), ..Server::named(name) },
        ] {
            for err in asked(&server).await {
                assert_eq!(err.kind(), ErrorKind::PermissionDenied, "{name}: {err}");
                let text = err.to_string();
                // rclone lets everybody ask what it can do, and says no afterwards.
                let said = name == "rclone" || text.contains("webdav: cannot connect to server");
                assert!(said && text.contains("401"), "{name}: {text}");
                assert!(!text.contains(&server.password) && err.hint_text().is_some(), "{name}: {text}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of tests/servers/webdav.sh"]
async fn only_trusted_servers_are_talked_to() {
    works(&Server::named("tls").client("trusted")).await;
    let client = Server::named("untrusted").client("untrusted");
    let err = tokio::time::timeout(Duration::from_secs(10), client.init()).await.unwrap().unwrap_err();
    assert_eq!(err.kind(), ErrorKind::PermissionDenied, "{err}");
    assert!(err.to_string().contains("certificate") && err.hint_text().unwrap().contains("SSL_CERT_FILE"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of tests/servers/webdav.sh"]
async fn an_exclusive_put_does_not_replace() {
    for name in ["basic", "digest", "nginx", "rclone"] {
        let client = Server::named(name).client("exclusive");
        let exclusive = PutOptions { exclusive: true, ..opts(None) };
        client.put(&key("ltx/0/a"), once("first"), exclusive).await.unwrap();
        let err = client.put(&key("ltx/0/a"), once("second"), exclusive).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Exists, "{name}: {err}");
        let body: Vec<Bytes> = client.get(&key("ltx/0/a"), None).await.unwrap().try_collect().await.unwrap();
        assert_eq!(body.concat(), b"first", "{name}");
    }
}

/// A small object: greeting and collections once, then two requests each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of tests/servers/webdav.sh"]
async fn requests_are_counted_and_an_idle_client_makes_none() {
    let client = Server::named("basic").client("economy");
    client.init().await.unwrap();
    client.put(&key("ltx/0/a"), once("x"), opts(Some(1))).await.unwrap();
    assert_eq!(client.stats().count(Operation::Put), (1, 0));
    assert_eq!(client.stats().count(Operation::List), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of tests/servers/webdav.sh"]
async fn a_cut_line_is_no_loss() {
    for name in ["basic", "digest", "nginx", "rclone"] {
        let (server, line) = Server::named(name).behind_a_line().await;
        let client = server.client("cut");
        for round in 0..5 {
            client.put(&key(&format!("ltx/1/{round}")), once("x"), opts(None)).await.unwrap();
            line.cut();
        }
        assert_eq!(list(&client, "ltx/1").await.unwrap().len(), 5, "{name}");
        assert!(line.connections() >= 4, "{name}: {}", line.connections());

        // A body of known length is sent once: the put fails, and nothing of it is to be seen.
        let chunk = Bytes::from(vec![7_u8; 1 << 20]);
        let (tx, rx) = futures::channel::mpsc::unbounded();
        let put = tokio::spawn({
            let client = client.clone();
            async move { client.put(&key("ltx/2/big"), rx.boxed(), opts(Some(40 << 20))).await }
        });
        for n in 0..40 {
            if n == 30 {
                tokio::time::sleep(Duration::from_millis(300)).await;
                line.cut();
            }
            let _ = tx.unbounded_send(Ok(chunk.clone()));
        }
        drop(tx);
        let err = tokio::time::timeout(Duration::from_secs(20), put).await.unwrap().unwrap().unwrap_err();
        assert!(err.is_transient(), "{name}: {err}");
        assert!(list(&client, "ltx/2").await.unwrap().is_empty(), "{name}");

        // One of unknown length was kept: it is sent again.
        let body = stream::iter((0..20).map(|_| Ok(chunk.clone())).collect::<Vec<_>>());
        let kept = key("ltx/2/kept");
        let put = client.put(&kept, body.boxed(), opts(None));
        let cutting = async {
            tokio::time::sleep(Duration::from_millis(60)).await;
            line.cut();
        };
        futures::future::join(put, cutting).await.0.unwrap();
        assert_eq!(list(&client, "ltx/2").await.unwrap()[0].size, 20 << 20, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of tests/servers/webdav.sh"]
async fn exact_stamps_come_from_the_files_themselves() {
    super::stamps_from_headers(Arc::new(Server::named("basic").client("header"))).await;
}
