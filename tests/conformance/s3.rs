//! S3 beyond the common suite: keys, multipart, encryption, and what wrong credentials look like. Needs the
//! services of `tests/servers/s3.sh`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use litestream::config::{self, Environment, ReplicaKind, Surroundings};
use litestream::error::ErrorKind;
use litestream::replica::requests::Operation;
use litestream::replica::s3::S3Client;
use litestream::replica::{Exclusion, Key, PutOptions, ReplicaClient, Stamps, once};
use litestream::sys::{BootId, Clock, SystemClock, World};
use litestream::types::Timestamp;
use sha2::{Digest, Sha256};

/// A line of `LITESTREAM_TEST_S3`.
pub(crate) struct Service {
    endpoint: String,
    bucket: String,
    access: String,
    secret: String,
}

impl Service {
    pub(crate) fn named(name: &str) -> Self {
        let all = std::env::var("LITESTREAM_TEST_S3").expect("run this below tests/servers/s3.sh");
        let line = all.lines().find(|line| line.split(' ').next() == Some(name));
        let words: Vec<_> = line.unwrap_or_else(|| panic!("no service {name}")).split(' ').map(str::to_owned).collect();
        let [_, endpoint, bucket, access, secret] = words.try_into().unwrap();
        Self { endpoint, bucket, access, secret }
    }

    fn all() -> [Self; 2] {
        [Self::named("moto"), Self::named("ceph")]
    }

    /// A client below a path nobody used before. `keys` are further lines of a replica's configuration.
    pub(crate) fn client(&self, path: &str, keys: &str) -> S3Client {
        let unique = SystemClock::new().now();
        self.client_at(&format!("{path}-{unique:?}").replace(|c: char| !c.is_ascii_alphanumeric(), "-"), keys)
    }

    fn config(&self, path: &str, keys: &str) -> String {
        format!(
            "dbs:\n  - path: /x.db\n    replica:\n      type: s3\n      bucket: {}\n      path: {path}\n      endpoint: \
             {}\n      access-key-id: {}\n      secret-access-key: '{}'\n{keys}",
            self.bucket, self.endpoint, self.access, self.secret
        )
    }

    fn client_at(&self, path: &str, keys: &str) -> S3Client {
        self.client_in(World::system(), path, keys)
    }

    fn client_in(&self, world: World, path: &str, keys: &str) -> S3Client {
        let env = Environment::new([], PathBuf::from("/"));
        let around = Surroundings { env: &env, fs: world.fs.as_ref() };
        let config = config::parse(&self.config(path, keys), around).unwrap();
        let ReplicaKind::S3(settings) = config.dbs[0].build(around).unwrap().replica.kind else {
            panic!("not an S3 replica")
        };
        S3Client::new(*settings, world)
    }
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn sha256(path: &Path) -> String {
    Sha256::digest(std::fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn opts(size: Option<u64>) -> PutOptions {
    PutOptions { stamp: Timestamp::from_millis(1_795_221_709_248), size, modes: None, exclusive: false }
}

async fn read(client: &S3Client, name: &str) -> Vec<u8> {
    let chunks: Vec<Bytes> = client.get(&key(name), None).await.unwrap().try_collect().await.unwrap();
    chunks.concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the services of tests/servers/s3.sh"]
async fn a_hundred_megabytes_go_in_parts_and_come_back() {
    for service in Service::all() {
        let client = service.client("multipart", "");
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
        // 21 parts, create, complete; a test server may drop a connection now and then.
        assert_eq!(client.stats().count(Operation::Put).0, 23);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the services of tests/servers/s3.sh"]
async fn a_small_object_is_one_request_and_an_idle_client_makes_none() {
    let client = Service::named("ceph").client("economy", "");
    client.init().await.unwrap();
    client.put(&key("0000/a"), once("x"), opts(Some(1))).await.unwrap();
    assert_eq!(client.stats().count(Operation::Put), (1, 0));
    for operation in [Operation::Get, Operation::List, Operation::Delete] {
        assert_eq!(client.stats().count(operation), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the services of tests/servers/s3.sh"]
async fn two_and_a_half_thousand_objects_are_deleted_in_three_requests() {
    for service in Service::all() {
        let client = service.client("batch", "");
        let keys: Vec<Key> = (0..2_500).map(|n| key(&format!("0000/{n:08}"))).collect();
        stream::iter(&keys)
            .for_each_concurrent(16, |key| async { drop(client.put(key, once("x"), opts(None)).await.unwrap()) })
            .await;
        client.delete(&keys).await.unwrap();
        assert_eq!(client.stats().count(Operation::Delete), (3, 0));
        let left: Vec<_> = client.list(&key("0000"), None, Stamps::Cheap).try_collect().await.unwrap();
        assert!(left.is_empty());
    }
}

/// The reference stores below `path`, verbatim: also below nothing, and below `.`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the services of tests/servers/s3.sh"]
async fn odd_paths_are_kept_byte_for_byte() {
    let service = Service::named("ceph");
    let whole = service.client_at("''", "");
    for path in ["odd//x/", "odd/./y", "./odd", "odd/a b+c=d:e%41~!*()"] {
        let client = service.client_at(&format!("'{path}'"), "");
        client.put(&key("0000/k"), once(path.to_owned()), opts(None)).await.unwrap();
        let listed: Vec<_> = client.list(&key("0000"), None, Stamps::Exact).try_collect().await.unwrap();
        assert_eq!(listed.len(), 1, "{path}");
        assert_eq!(read(&client, "0000/k").await, path.as_bytes());
        client.delete(&[key("0000/k")]).await.unwrap();
    }
    // An empty path begins with a slash.
    whole.put(&key("0000/k"), once("empty"), opts(None)).await.unwrap();
    assert_eq!(read(&whole, "0000/k").await, b"empty");
    whole.delete(&[key("0000/k")]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the services of tests/servers/s3.sh"]
async fn an_object_under_a_customer_key_is_read_with_that_key_only() {
    let service = Service::named("ceph");
    let sse = |letter: &str| format!("      sse-customer-key: {}=\n", letter.repeat(43));
    let path = format!("sse-{}", std::process::id());
    let client = service.client_at(&path, &sse("A"));
    client.put(&key("0000/small"), once("secret"), opts(None)).await.unwrap();
    client.put(&key("0000/big"), once(vec![7_u8; 11_000_000]), opts(None)).await.unwrap();
    let listed: Vec<_> = client.list(&key("0000"), None, Stamps::Exact).try_collect().await.unwrap();
    assert!(listed.iter().all(|object| object.modified == opts(None).stamp));
    assert_eq!(read(&client, "0000/small").await, b"secret");
    assert_eq!(read(&client, "0000/big").await, vec![7_u8; 11_000_000]);
    for other in [service.client_at(&path, ""), service.client_at(&path, &sse("E"))] {
        assert!(other.get(&key("0000/small"), None).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the services of tests/servers/s3.sh"]
async fn unsigned_payloads_and_deletes_without_md5_work() {
    for service in Service::all() {
        let client = service.client("unsigned", "      sign-payload: false\n      require-content-md5: false\n");
        client.put(&key("0000/a"), once("x"), opts(None)).await.unwrap();
        assert_eq!(read(&client, "0000/a").await, b"x");
        client.delete(&[key("0000/a")]).await.unwrap();
    }
}

/// Each is told apart by its code and says what to do, within seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the services of tests/servers/s3.sh"]
async fn what_is_wrong_is_said_at_once() {
    for name in ["moto", "ceph"] {
        let good = || Service::named(name);
        let cases = [
            (Service { secret: "wrong".to_owned(), ..good() }, "SignatureDoesNotMatch", ErrorKind::PermissionDenied),
            (Service { access: "AKNOBODY".to_owned(), ..good() }, "InvalidAccessKeyId", ErrorKind::PermissionDenied),
            (Service { bucket: "no-such-bucket".to_owned(), ..good() }, "NoSuchBucket", ErrorKind::Invalid),
        ];
        for (service, code, kind) in cases {
            let client = service.client("wrong", "");
            let asked = async {
                let listed: Result<Vec<_>, _> = client.list(&key("0000"), None, Stamps::Cheap).try_collect().await;
                let put = client.put(&key("0000/a"), once("x"), opts(None)).await;
                [listed.unwrap_err(), put.unwrap_err()]
            };
            for err in tokio::time::timeout(Duration::from_secs(5), asked).await.unwrap() {
                let text = err.to_string();
                assert!(text.contains(code) && text.contains(&service.bucket), "{name}: {text}");
                assert_eq!(err.kind(), kind, "{name}: {text}");
                assert!(err.hint_text().is_some(), "{name}: {text}");
                assert!(!text.contains(&service.secret) || service.secret == "wrong");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the services of tests/servers/s3.sh"]
async fn services_that_create_exclusively_are_recognised() {
    for service in Service::all() {
        let client: Arc<dyn ReplicaClient> = Arc::new(service.client("exclusive", ""));
        let exclusive = PutOptions { exclusive: true, ..opts(None) };
        client.put(&key("0000/a"), once("first"), exclusive).await.unwrap();
        assert_eq!(client.exclusion(), Exclusion::Exact);
        // The trial is no failure.
        assert_eq!(client.requests().unwrap().count(Operation::Put).1, 0);
        let err = client.put(&key("0000/a"), once("second"), exclusive).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Exists);
        let big = vec![1_u8; 6_000_000];
        client.put(&key("0000/b"), once(big.clone()), exclusive).await.unwrap();
        let err = client.put(&key("0000/b"), once(big), exclusive).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Exists);
    }
}

/// A backup of Litestream 0.3.x is found below `generations/`, whatever the path looks like, and restored by the program.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the services of tests/servers/s3.sh"]
async fn backups_of_the_old_format_are_found_and_restored() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/replicas/v3-basic");
    let expected: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture.join("expected.json")).unwrap()).unwrap();
    let objects: Vec<&str> =
        expected["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect();
    assert!(objects.len() > 20);
    let dir = tempfile::tempdir().unwrap();
    for service in Service::all() {
        let path = format!("/old/{}/", std::process::id());
        let client = service.client_at(&path, "");
        for object in &objects {
            let bytes = std::fs::read(fixture.join("replica").join(object)).unwrap();
            client.put(&key(object), once(bytes), opts(None)).await.unwrap();
        }
        let dirs: Vec<Key> = client.list_dirs(&key("generations")).unwrap().try_collect().await.unwrap();
        assert_eq!(dirs, [key("generations/2718c9f14ac70deb")]);

        let config = dir.path().join("litestream.yml");
        std::fs::write(&config, service.config(&path, "")).unwrap();
        let out = dir.path().join("restored.db");
        let ran = std::process::Command::new(env!("CARGO_BIN_EXE_litestream"))
            .arg("restore")
            .arg("-config")
            .arg(&config)
            .arg("-o")
            .arg(&out)
            .arg("/x.db")
            .output()
            .unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        let conn = rusqlite::Connection::open(&out).unwrap();
        let check: String = conn.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
        drop(conn);
        assert_eq!(sha256(&out), expected["latest"]["sha256"].as_str().unwrap());
        std::fs::remove_file(out).unwrap();
    }
}

/// A clock that is off by so many seconds.
#[derive(Debug)]
struct Shifted(SystemClock, i64);

impl Clock for Shifted {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.now().millis() + self.1 * 1000)
    }
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
    fn pause(&self, time: Duration) {
        self.0.pause(time);
    }
    fn boot(&self) -> Option<BootId> {
        self.0.boot()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the services of tests/servers/s3.sh"]
async fn a_clock_that_is_two_hours_off_is_said_at_once() {
    let service = Service::named("ceph");
    for seconds in [7200, -7200] {
        let clock: Arc<dyn Clock> = Arc::new(Shifted(SystemClock::new(), seconds));
        let client = service.client_in(World { clock, ..World::system() }, "clock", "");
        let asked = async { client.put(&key("0000/a"), once("x"), opts(None)).await };
        let err = tokio::time::timeout(Duration::from_secs(5), asked).await.unwrap().unwrap_err();
        assert!(err.to_string().contains("RequestTimeTooSkewed"), "{err}");
        assert_eq!(err.kind(), ErrorKind::PermissionDenied);
        assert!(err.hint_text().unwrap().contains("clock"), "{err}");
    }
    // A few minutes are tolerated.
    let clock: Arc<dyn Clock> = Arc::new(Shifted(SystemClock::new(), 300));
    let client = service.client_in(World { clock, ..World::system() }, "clock", "");
    client.put(&key("0000/a"), once("x"), opts(None)).await.unwrap();
}
