//! What requests carry beyond their address, by vendor and setting; and what becomes of answers that no test server gives:
//! other regions, half documents, conditions that are not understood.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use futures::TryStreamExt;

use super::*;
use crate::once;
use crate::settings::{Environment, ReplicaKeys, ReplicaKind, Secret, Surroundings};

type Answer = (u16, &'static str, String);

/// A service of one function: method, target and headers of a request → status, a header line, body.
#[derive(Clone)]
struct Service {
    answer: Arc<dyn Fn(&HttpRequest) -> Answer + Send + Sync>,
    seen: Arc<Mutex<Vec<HttpRequest>>>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Service")
    }
}

impl HttpConnector for Service {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (status, header, body) = (self.answer)(&request);
        self.seen.lock().unwrap().push(request);
        let mut response = HttpResponse::new(status.try_into().unwrap(), SdkBody::from(body));
        if let Some((name, value)) = header.split_once(": ") {
            response.headers_mut().insert(name, value);
        }
        HttpConnectorFuture::ready(Ok(response))
    }
}

impl Service {
    fn new(answer: impl Fn(&HttpRequest) -> Answer + Send + Sync + 'static) -> Self {
        Self { answer: Arc::new(answer), seen: Arc::default() }
    }

    /// A client of this service; `keys` are lines of a replica's configuration.
    fn client(&self, keys: &str) -> S3Client {
        let env = Environment::new([], PathBuf::from("/"));
        let world = World::system();
        let around = Surroundings { env: &env, fs: world.fs.as_ref() };
        let mut replica = ReplicaKeys { kind: "s3".to_owned(), path: "p".to_owned(), ..ReplicaKeys::default() };
        let settings = &mut replica.settings;
        settings.bucket = "bkt".to_owned();
        settings.access_key_id = Secret::new("AK");
        settings.secret_access_key = Secret::new("SK");
        for line in keys.lines() {
            match line.trim().split_once(": ").unwrap() {
                ("endpoint", value) => settings.endpoint = value.to_owned(),
                ("region", value) => settings.region = value.to_owned(),
                ("storage-class", value) => settings.storage_class = value.to_owned(),
                ("sse-kms-key-id", value) => settings.sse_kms_key_id = value.to_owned(),
                ("sse-customer-key", value) => settings.sse_customer_key = Secret::new(value),
                other => panic!("{other:?}"),
            }
        }
        let ReplicaKind::S3(settings) = replica.resolve(around).unwrap().kind else { panic!("not an S3 replica") };
        let connector = SharedHttpConnector::new(self.clone());
        let http: SharedHttpClient = http_client_fn(move |_, _| connector.clone());
        S3Client::with_http(*settings, world, Some(http))
    }

    fn take(&self) -> Vec<HttpRequest> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

/// Answers every request as a store that works.
fn works(request: &HttpRequest) -> Answer {
    let body = |text: &str| (200, "etag: \"e\"", text.to_owned());
    match (request.method(), request.uri()) {
        ("POST", uri) if uri.contains("uploads") => {
            body("<InitiateMultipartUploadResult><UploadId>U</UploadId></InitiateMultipartUploadResult>")
        }
        ("POST", uri) if uri.contains("uploadId") => {
            body("<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>")
        }
        ("POST", _) => body("<DeleteResult/>"),
        ("GET", uri) if uri.contains("list-type") => body(LISTING),
        _ => body(""),
    }
}

const LISTING: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult \
                       xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><IsTruncated>false</IsTruncated><Contents>\
                       <Key>p/0000/a</Key><Size>1</Size></Contents><Contents><Key>p/0000/b</Key><Size>2</Size>\
                       </Contents></ListBucketResult>";

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn opts(exclusive: bool) -> PutOptions {
    PutOptions { stamp: Timestamp::from_millis(1_795_221_606_490), size: None, modes: None, exclusive }
}

/// Every kind of request once, by the name of its operation.
async fn one_of_each(keys: &str) -> Vec<(&'static str, HttpRequest)> {
    let service = Service::new(works);
    let client = service.client(keys);
    client.put(&key("0000/a"), once("x"), opts(false)).await.unwrap();
    client.put(&key("0001/b"), once(vec![7_u8; 6_000_000]), opts(false)).await.unwrap();
    let _: Vec<Bytes> = client.get(&key("0000/a"), None).await.unwrap().try_collect().await.unwrap();
    let _: Vec<ObjectMeta> = client.list(&key("0000"), None, Stamps::Cheap).try_collect().await.unwrap();
    client.head("p/0000/a").await.unwrap();
    client.delete(&[key("0000/a")]).await.unwrap();
    let names = ["put", "create", "part", "part", "complete", "get", "list", "head", "delete"];
    let seen = service.take();
    assert_eq!(seen.len(), names.len(), "{seen:?}");
    names.into_iter().zip(seen).collect()
}

/// The operations whose requests carry a header, each once, and the header's value if it is always the same.
fn carriers(requests: &[(&'static str, HttpRequest)], header: &str) -> (Vec<&'static str>, Option<String>) {
    let with = requests.iter().filter_map(|(name, r)| r.headers().get(header).map(|value| (*name, value.to_owned())));
    let (mut names, values): (Vec<_>, Vec<_>) = with.unzip();
    names.dedup();
    let same = values.windows(2).all(|pair| pair[0] == pair[1]);
    (names, values.first().filter(|_| same).cloned())
}

#[tokio::test]
async fn requests_carry_what_each_vendor_wants() {
    let endpoints = [
        ("AWS", "    region: eu-west-1\n", true, false),
        ("Tigris", "    endpoint: https://fly.storage.tigris.dev\n", false, true),
        ("Hetzner", "    endpoint: https://fsn1.your-objectstorage.com\n", true, false),
        ("DigitalOcean", "    endpoint: https://nyc3.digitaloceanspaces.com\n", true, false),
        ("Backblaze", "    endpoint: https://s3.us-west-000.backblazeb2.com\n", true, false),
        ("Filebase", "    endpoint: https://s3.filebase.com\n", true, false),
        ("Scaleway", "    endpoint: https://s3.nl-ams.scw.cloud\n", true, false),
        ("R2", "    endpoint: https://acc.r2.cloudflarestorage.com\n", true, false),
        ("Supabase", "    endpoint: https://abc.supabase.co/storage/v1/s3\n", true, false),
        ("self-hosted", "    endpoint: http://minio.lan:9000\n", true, false),
        ("Google", "    endpoint: https://storage.googleapis.com\n", true, false),
        ("Wasabi", "    endpoint: https://s3.eu-central-1.wasabisys.com\n", true, false),
    ];
    for (vendor, keys, content_md5, tigris) in endpoints {
        let requests = one_of_each(keys).await;
        let carries = |header: &str| carriers(&requests, header).0;
        assert_eq!(carries("content-md5"), if content_md5 { vec!["delete"] } else { vec![] }, "{vendor}");
        assert_eq!(carries("x-tigris-consistent").len(), if tigris { 8 } else { 0 }, "{vendor}");
        assert_eq!(carries("x-amz-meta-litestream-timestamp"), ["put", "create"], "{vendor}");
        let stamp = carriers(&requests, "x-amz-meta-litestream-timestamp").1;
        assert_eq!(stamp.as_deref(), Some("2026-11-21T00:40:06.49Z"), "{vendor}");
        // Ranges are for parts, conditions for exclusive puts, and a batch delete always has a checksum.
        assert!(carries("range").is_empty() && carries("if-none-match").is_empty(), "{vendor}");
        assert!(carries("x-amz-checksum-crc32").contains(&"delete"), "{vendor}");
        let chunked = carriers(&requests, "content-encoding").1.is_some_and(|v| v.contains("aws-chunked"));
        let checksums = carries("x-amz-checksum-mode");
        assert_eq!(checksums.is_empty(), vendor != "AWS", "{vendor}: {checksums:?}");
        assert!(!chunked || vendor == "AWS", "{vendor}");
        for (name, request) in &requests {
            let hash = request.headers().get("x-amz-content-sha256").unwrap();
            let signed = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
            assert!(signed || (vendor == "AWS" && ["put", "part"].contains(name)), "{vendor} {name}: {hash}");
            let authorization = request.headers().get("authorization").unwrap();
            assert!(!authorization.contains("accept-encoding"), "{vendor} {name}");
        }
    }
}

#[tokio::test]
async fn encryption_and_storage_class_are_said_where_objects_are_made_and_read_and_nowhere_else() {
    let endpoint = "    endpoint: https://minio.lan:9000\n";
    let kms = one_of_each(&format!("{endpoint}    sse-kms-key-id: alias/k\n    storage-class: GLACIER_IR\n")).await;
    let header = |name: &str| carriers(&kms, name);
    assert_eq!(header("x-amz-server-side-encryption"), (vec!["put", "create"], Some("aws:kms".to_owned())));
    let id = header("x-amz-server-side-encryption-aws-kms-key-id");
    assert_eq!(id, (vec!["put", "create"], Some("alias/k".to_owned())));
    assert_eq!(header("x-amz-storage-class"), (vec!["put", "create"], Some("GLACIER_IR".to_owned())));
    assert!(header("x-amz-server-side-encryption-customer-key").0.is_empty());

    let sse = one_of_each(&format!("{endpoint}    sse-customer-key: {}=\n", "A".repeat(43))).await;
    for name in ["algorithm", "key", "key-md5"] {
        let (with, value) = carriers(&sse, &format!("x-amz-server-side-encryption-customer-{name}"));
        assert_eq!(with, ["put", "create", "part", "get", "head"], "{name}");
        let want = ["AES256", &format!("{}=", "A".repeat(43)), "cLyPS3KoaSFGi/joRB3OUQ=="];
        assert!(want.contains(&value.unwrap().as_str()), "{name}");
    }
    assert!(carriers(&sse, "x-amz-server-side-encryption").0.is_empty());
}

/// A store of names: answers a PUT as told whether there is such an object.
fn store(put: impl Fn(bool, &HttpRequest) -> Option<Answer> + Send + Sync + 'static) -> Service {
    let stored = Mutex::new(std::collections::HashSet::new());
    Service::new(move |request| {
        let path = request.uri().split('?').next().unwrap_or_default().to_owned();
        let mut stored = stored.lock().unwrap();
        let there = stored.contains(&path);
        match request.method() {
            "HEAD" if there => works(request),
            "HEAD" => (404, "", String::new()),
            "PUT" | "POST" => put(there, request).unwrap_or_else(|| {
                // Of an upload in parts only the end makes an object.
                if !request.uri().contains("?uploads") && !request.uri().contains("partNumber") {
                    stored.insert(path);
                }
                works(request)
            }),
            _ => works(request),
        }
    })
}

#[tokio::test]
async fn whether_a_service_creates_exclusively_is_found_out_once() {
    let asks = |requests: &[HttpRequest]| -> Vec<(String, bool)> {
        let ask =
            |request: &HttpRequest| (request.method().to_owned(), request.headers().get("if-none-match") == Some("*"));
        requests.iter().map(ask).collect()
    };
    let (look, plain, guarded) = (("HEAD".to_owned(), false), ("PUT".to_owned(), false), ("PUT".to_owned(), true));
    // Takes the condition and overwrites all the same: it is looked before each.
    let service = store(|_, _| None);
    let client = service.client("    endpoint: http://replaces.lan:9000\n");
    assert_eq!(client.exclusion(), Exclusion::Untried);
    for name in ["0000/a", "0000/b"] {
        client.put(&key(name), once("x"), opts(true)).await.unwrap();
    }
    let want = [&look, &guarded, &guarded, &look, &plain].map(Clone::clone);
    assert_eq!(asks(&service.take()), want);
    assert_eq!(client.exclusion(), Exclusion::Missing);
    assert_eq!(client.put(&key("0000/b"), once("y"), opts(true)).await.unwrap_err().kind(), ErrorKind::Exists);
    let large = once(vec![7_u8; 6_000_000]);
    assert_eq!(client.put(&key("0000/b"), large, opts(true)).await.unwrap_err().kind(), ErrorKind::Exists);

    // Refuses what it does not know.
    let service = store(|_, request| {
        let condition = request.headers().get("if-none-match");
        condition.map(|_| (501, "", "<Error><Code>NotImplemented</Code></Error>".to_owned()))
    });
    let client = service.client("    endpoint: http://refuses.lan:9000\n");
    for name in ["0000/a", "0000/b"] {
        client.put(&key(name), once("x"), opts(true)).await.unwrap();
    }
    let want = [&look, &guarded, &plain, &look, &plain].map(Clone::clone);
    assert_eq!(asks(&service.take()), want);
    assert_eq!(client.exclusion(), Exclusion::Missing);
    assert_eq!(client.stats().count(Operation::Put), (3, 0), "a trial is no failure");
    // A first object that goes in parts finds it out, too.
    let client = service.client("    endpoint: http://refuses-parts.lan:9000\n");
    client.put(&key("0001/large"), once(vec![7_u8; 6_000_000]), opts(true)).await.unwrap();
    assert_eq!(client.exclusion(), Exclusion::Missing);

    // Heeds it. What one database found out, the next one knows.
    let service =
        store(|there, _| there.then(|| (412, "", "<Error><Code>PreconditionFailed</Code></Error>".to_owned())));
    let client = service.client("    endpoint: http://heeds.lan:9000\n");
    client.put(&key("0000/a"), once("x"), opts(true)).await.unwrap();
    assert_eq!(client.exclusion(), Exclusion::Exact);
    assert_eq!(client.stats().count(Operation::Put), (2, 0), "a trial is no failure");
    let other = service.client("    endpoint: http://heeds.lan:9000\n");
    assert_eq!(other.exclusion(), Exclusion::Exact);
    other.put(&key("0000/b"), once("x"), opts(true)).await.unwrap();
    assert_eq!(other.put(&key("0000/b"), once("y"), opts(true)).await.unwrap_err().kind(), ErrorKind::Exists);
    let want = [&look, &guarded, &guarded, &guarded, &guarded].map(Clone::clone);
    assert_eq!(asks(&service.take()), want);
}

/// Credentials that may write but not read: nothing can be looked at, and the condition of the write decides.
#[tokio::test]
async fn where_looking_is_not_allowed_objects_are_written_all_the_same() {
    let service = Service::new(|request| match request.method() {
        "HEAD" => (403, "", String::new()),
        _ => works(request),
    });
    let client = service.client("    endpoint: http://write-only.lan:9000\n");
    client.put(&key("0000/a"), once("x"), opts(true)).await.unwrap();
    client.put(&key("0000/b"), once("x"), opts(true)).await.unwrap();
    assert_eq!(client.exclusion(), Exclusion::Missing);
}

#[tokio::test(start_paused = true)]
async fn half_a_listing_is_never_taken_for_a_whole_one() {
    for cut in 0..LISTING.len() {
        let service = Service::new(move |_| (200, "", LISTING[..cut].to_owned()));
        let client = service.client("    endpoint: http://minio.lan:9000\n");
        let listed: Result<Vec<_>> = client.list(&key("0000"), None, Stamps::Cheap).try_collect().await;
        let err = listed.expect_err(&LISTING[..cut]);
        assert_eq!(err.kind(), ErrorKind::Unavailable, "{cut}: {err}");
    }
    let service = Service::new(works);
    let client = service.client("    endpoint: http://minio.lan:9000\n");
    let listed: Vec<_> = client.list(&key("0000"), None, Stamps::Cheap).try_collect().await.unwrap();
    assert_eq!(listed.len(), 2);
}

/// What AWS says to those who ask in the wrong place: no server for tests does.
#[tokio::test(start_paused = true)]
async fn a_bucket_elsewhere_is_a_final_error_that_says_where() {
    let answers: [(u16, &str, &str); 3] = [
        (301, "x-amz-bucket-region: eu-west-1", "<Error><Code>PermanentRedirect</Code><Message>m</Message></Error>"),
        (
            400,
            "",
            "<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region 'us-east-1' is wrong; expecting \
             'eu-west-1'</Message></Error>",
        ),
        (301, "x-amz-bucket-region: eu-west-1", ""),
    ];
    for (status, header, body) in answers {
        let service = Service::new(move |_| (status, header, body.to_owned()));
        let client = service.client("    region: us-east-1\n");
        let err = client.put(&key("0000/a"), once("x"), opts(false)).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Invalid, "{err}");
        assert!(err.to_string().contains("eu-west-1") && err.to_string().contains("s3://bkt/p/0000/a"), "{err}");
        assert!(err.hint_text().unwrap().contains("set region"), "{err}");
        assert_eq!(service.take().len(), 1, "not tried again");
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_a_service_asks_for_is_waited() {
    let calls = Arc::new(Mutex::new(0));
    let counted = calls.clone();
    let service = Service::new(move |request| {
        let mut calls = counted.lock().unwrap();
        *calls += 1;
        match *calls {
            1 => (429, "retry-after: 7", String::new()),
            2 => (503, "retry-after: 5", "<html>busy</html>".to_owned()),
            _ => works(request),
        }
    });
    let client = service.client("    endpoint: http://minio.lan:9000\n");
    let began = tokio::time::Instant::now();
    client.put(&key("0000/a"), once("x"), opts(false)).await.unwrap();
    assert_eq!(*calls.lock().unwrap(), 3);
    assert!(began.elapsed().as_secs() >= 12, "{:?}", began.elapsed());
}
