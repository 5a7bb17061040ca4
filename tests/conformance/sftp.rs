//! SFTP beyond the common suite: ways to log in, whom we take for the server, lost connections. Needs the server of
//! `tests/servers/sftp.sh`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use litestream::config::ReplicaKind;
use litestream::error::{Error, ErrorKind, Result};
use litestream::replica::requests::Operation;
use litestream::replica::sftp::SftpClient;
use litestream::replica::{Exclusion, Key, ObjectMeta, PutOptions, ReplicaClient, Stamps, once};
use litestream::sys::World;
use litestream::types::Timestamp;

use super::proxy::Line;
use super::settings::{replica, unique};

/// `LITESTREAM_TEST_SFTP`.
pub(crate) struct Server {
    address: String,
    user: String,
    password: String,
    dir: String,
    keys: String,
}

impl Server {
    pub(crate) fn get() -> Self {
        let text = std::env::var("LITESTREAM_TEST_SFTP").expect("run this below tests/servers/sftp.sh");
        let words: Vec<_> = text.split(' ').map(str::to_owned).collect();
        let [address, user, password, dir, keys, _] = words.try_into().unwrap();
        Self { address, user, password, dir, keys }
    }

    /// A client below a directory nobody used before.
    pub(crate) fn client(&self, name: &str) -> SftpClient {
        let (password, host_key) = (&self.password, self.key_line("host"));
        self.with(name, &format!("password: '{password}'\nhost-key: '{host_key}'"), &[])
    }

    /// The same with these ways to log in.
    fn with(&self, name: &str, keys: &str, vars: &[(&str, &str)]) -> SftpClient {
        let Self { address, user, dir, .. } = self;
        let path = format!("{dir}/{}", unique(name));
        let text = format!("type: sftp\nhost: {address}\nuser: {user}\npath: {path}\n{keys}");
        let ReplicaKind::Sftp(settings) = replica(&text, vars) else { panic!("not an SFTP replica") };
        SftpClient::new(settings, World::system())
    }

    /// Kind and key, without the comment.
    fn key_line(&self, name: &str) -> String {
        let line = std::fs::read_to_string(format!("{}/{name}.pub", self.keys)).unwrap();
        line.split(' ').take(2).collect::<Vec<_>>().join(" ")
    }
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn opts() -> PutOptions {
    PutOptions { stamp: Timestamp::from_millis(1_795_221_709_248), size: None, modes: None, exclusive: false }
}

async fn list(client: &SftpClient, dir: &str) -> Result<Vec<ObjectMeta>> {
    client.list(&key(dir), None, Stamps::Cheap).try_collect().await
}

async fn works(client: &SftpClient) {
    client.put(&key("ltx/0/a"), once("x"), opts()).await.unwrap();
    assert_eq!(list(client, "ltx/0").await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the server of tests/servers/sftp.sh"]
async fn every_way_to_log_in_works() {
    let server = Server::get();
    let (keys, host) = (&server.keys, format!("host-key: '{}'", server.key_line("host")));
    works(&server.client("password")).await;
    works(&server.with("ed25519", &format!("key-path: {keys}/id_ed25519\n{host}"), &[])).await;
    works(&server.with("rsa-pem", &format!("key-path: {keys}/id_rsa\n{host}"), &[])).await;
    let agent = format!("{keys}/agent.sock");
    works(&server.with("agent", &host, &[("SSH_AUTH_SOCK", &agent)])).await;
    // A wrong password does not keep the key from being tried.
    works(&server.with("both", &format!("password: wrong\nkey-path: {keys}/id_rsa\n{host}"), &[])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the server of tests/servers/sftp.sh"]
async fn only_the_right_server_is_taken_for_it() {
    let server = Server::get();
    let password = format!("password: '{}'\n", server.password);
    let home = tempfile::tempdir().unwrap();
    let known = |lines: String| {
        std::fs::write(home.path().join("known_hosts"), lines).unwrap();
        let ReplicaKind::Sftp(mut settings) = replica(
            &format!(
                "type: sftp\nhost: {}\nuser: {}\npath: {}/known\n{password}",
                server.address, server.user, server.dir
            ),
            &[],
        ) else {
            panic!()
        };
        settings.known_hosts = vec![home.path().join("known_hosts")];
        settings
    };
    let (host, port) = server.address.split_once(':').unwrap();
    let line = |name: &str| format!("[{host}]:{port} {}\n", server.key_line(name));
    let mismatch = |err: Error| {
        assert_eq!(err.kind(), ErrorKind::PermissionDenied, "{err}");
        assert!(err.to_string().contains("ssh: host key mismatch") && err.hint_text().is_some(), "{err}");
    };

    // Either of the server's keys may be pinned: it is asked for that one.
    works(&server.with("pinned", &format!("{password}host-key: '{}'", server.key_line("host_ecdsa")), &[])).await;
    let other = server.with("other", &format!("{password}host-key: '{}'", server.key_line("other")), &[]);
    mismatch(other.init().await.unwrap_err());
    let no_key = server.with("none", &format!("{password}host-key: rubbish"), &[]).init().await.unwrap_err();
    assert!(no_key.to_string().contains("cannot parse sftp host key: ssh: no key found"), "{no_key}");

    // What stands in known_hosts counts; a host that does not stand there is refused, and shown with what to write.
    works(&SftpClient::new(known(line("host")), World::system())).await;
    mismatch(SftpClient::new(known(line("other")), World::system()).init().await.unwrap_err());
    let err = SftpClient::new(known(String::new()), World::system()).init().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::PermissionDenied, "{err}");
    assert!(err.hint_text().is_some_and(|hint| hint.contains("host-key: any")), "{err}");
    let text = err.to_string();
    assert!(text.contains(&format!("unknown host [{host}]:{port}")) && text.contains("SHA256:"), "{text}");
    // The lines it shows are right.
    let line_shown = text.split('`').nth(1).unwrap();
    works(&SftpClient::new(known(format!("{line_shown}\n")), World::system())).await;
    let pin_shown = text.split('"').nth(1).unwrap();
    works(&server.with("shown", &format!("{password}host-key: '{pin_shown}'"), &[])).await;
    let mut any = known(line("other"));
    any.host_key = litestream::config::HostKey::Any;
    works(&SftpClient::new(any, World::system())).await;
}

/// Each is told apart and says what to do, within seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the server of tests/servers/sftp.sh"]
async fn what_is_wrong_is_said_at_once() {
    let server = Server::get();
    let (keys, host) = (&server.keys, format!("host-key: '{}'", server.key_line("host")));
    let cases = [
        ("password: wrong".to_owned(), "ssh: unable to authenticate, attempted methods [none password]"),
        (format!("key-path: {keys}/id_stranger"), "attempted methods [none publickey]"),
        (format!("key-path: {keys}/id_locked"), "ssh: this private key is passphrase protected"),
        (format!("key-path: {keys}/absent"), "sftp: cannot read sftp key path"),
        (format!("key-path: {keys}/host.pub"), "sftp: cannot parse sftp key path"),
        (String::new(), "ssh: unable to authenticate, attempted methods [none]"),
    ];
    for (login, want) in cases {
        let client = server.with("wrong", &format!("{login}\n{host}"), &[]);
        let asked = async {
            let put = client.put(&key("ltx/0/a"), once("x"), opts()).await;
            [list(&client, "ltx/0").await.unwrap_err(), put.unwrap_err()]
        };
        for err in tokio::time::timeout(Duration::from_secs(10), asked).await.unwrap() {
            assert!(err.to_string().contains(want), "{err}");
            assert_eq!(err.kind(), ErrorKind::PermissionDenied, "{err}");
            assert!(err.hint_text().is_some(), "{err}");
        }
    }
}

/// Ten listings with a wrong password are one failed login.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the server of tests/servers/sftp.sh"]
async fn one_login_serves_all() {
    let mut server = Server::get();
    let line = Line::to(&server.address).await;
    server.address = line.address();
    let clients = [server.client("one"), server.client("two"), server.client("three")];
    let work = clients.iter().map(|client| async { works(client).await });
    futures::future::join_all(work).await;
    assert_eq!(line.connections(), 1);
    server.password = "wrong".to_owned();
    let client = server.client("wrong");
    let listings = (0..10).map(|_| list(&client, "ltx/0"));
    assert!(futures::future::join_all(listings).await.iter().all(Result::is_err));
    assert_eq!(line.connections(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the server of tests/servers/sftp.sh"]
async fn a_lost_connection_is_made_again() {
    let mut server = Server::get();
    let line = Line::to(&server.address).await;
    server.address = line.address();
    let client = server.client("cut");
    works(&client).await;
    for round in 0..5 {
        line.cut();
        let name = format!("ltx/1/{round}");
        client.put(&key(&name), once("x"), opts()).await.unwrap();
    }
    assert_eq!(list(&client, "ltx/1").await.unwrap().len(), 5);
    assert!(line.connections() >= 4, "{}", line.connections());

    // A large body cannot be sent again: the put fails, and nothing of it is to be seen.
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
    let err = tokio::time::timeout(Duration::from_secs(20), put).await.unwrap().unwrap().unwrap_err();
    assert!(err.is_transient(), "{err}");
    assert!(list(&client, "ltx/2").await.unwrap().is_empty());
    works(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the server of tests/servers/sftp.sh"]
async fn a_reader_that_is_cut_off_is_told() {
    let mut server = Server::get();
    let line = Line::to(&server.address).await;
    server.address = line.address();
    let client = server.client("read");
    let body: Vec<_> = (0..30).map(|n| Ok(Bytes::from(vec![n; 1 << 20]))).collect();
    client.put(&key("ltx/9/big"), stream::iter(body).boxed(), opts()).await.unwrap();
    let mut stream = client.get(&key("ltx/9/big"), None).await.unwrap();
    stream.next().await.unwrap().unwrap();
    line.cut();
    let rest: Result<Vec<Bytes>> = stream.try_collect().await;
    assert_eq!(rest.unwrap_err().kind(), ErrorKind::Unavailable);
}

/// Nobody waits for the removal of temporary names; it happens all the same, whatever becomes of the object.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the server of tests/servers/sftp.sh"]
async fn no_temporary_name_stays() {
    let client = Server::get().client("temporary");
    for exclusive in [true, false] {
        let opts = PutOptions { exclusive, ..opts() };
        for name in ["a", "b", "c"] {
            let put = client.put(&key(&format!("ltx/0/{name}{exclusive}")), once(name), opts).await;
            assert_eq!(put.unwrap().modified, opts.stamp);
        }
    }
    let taken = client.put(&key("ltx/0/atrue"), once("other"), PutOptions { exclusive: true, ..opts() }).await;
    assert_eq!(taken.unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(list(&client, "ltx/0").await.unwrap().len(), 6);
    // The server's own disk.
    let location = client.location();
    let dir = location.splitn(4, '/').nth(3).unwrap();
    let names = std::fs::read_dir(format!("/{dir}/ltx/0")).unwrap();
    let names: Vec<String> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names.len(), 6, "{names:?}");
}

/// What is not counted here is not made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the server of tests/servers/sftp.sh"]
async fn requests_are_counted_and_an_idle_client_makes_none() {
    let client = Server::get().client("economy");
    client.init().await.unwrap();
    client.put(&key("ltx/0/a"), once("x"), opts()).await.unwrap();
    assert_eq!(client.stats().count(Operation::Put), (1, 0));
    assert_eq!(client.stats().count(Operation::List), (0, 0));
    let exclusive = PutOptions { exclusive: true, ..opts() };
    client.put(&key("ltx/0/b"), once("x"), exclusive).await.unwrap();
    assert_eq!(client.exclusion(), Exclusion::Exact);
    assert_eq!(client.stats().count(Operation::Put), (2, 0));
}

/// Servers keep whole seconds; a restore to a moment needs more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the server of tests/servers/sftp.sh"]
async fn exact_stamps_come_from_the_files_themselves() {
    super::stamps_from_headers(Arc::new(Server::get().client("header"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the server of tests/servers/sftp.sh"]
async fn a_directory_that_may_not_be_written_is_said() {
    let server = Server::get();
    let keys = format!("password: '{}'\nhost-key: '{}'", server.password, server.key_line("host"));
    let Server { address, user, .. } = &server;
    let text = format!("type: sftp\nhost: {address}\nuser: {user}\npath: /root/nowhere\n{keys}");
    let ReplicaKind::Sftp(settings) = replica(&text, &[]) else { panic!() };
    let client = SftpClient::new(settings, World::system());
    let err = client.put(&key("ltx/0/a"), once("x"), opts()).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::PermissionDenied, "{err}");
    assert!(err.to_string().contains("SSH_FX_PERMISSION_DENIED"), "{err}");
}
