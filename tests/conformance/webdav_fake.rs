//! WebDAV servers with manners that the real ones of `tests/servers/webdav.sh` do not have: one that ignores
//! `Overwrite: F` (dufs), one that forgets its Digest numbers and does not say so. In this process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use litestream::config::ReplicaKind;
use litestream::error::ErrorKind;
use litestream::replica::requests::Operation;
use litestream::replica::webdav::WebdavClient;
use litestream::replica::{Exclusion, Key, PutOptions, ReplicaClient, once};
use litestream::sys::World;
use litestream::types::Timestamp;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::settings::replica;

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    heeds_overwrite: bool,
    /// The Digest number that is good now, if anybody must log in. With it: whether the password is right.
    nonce: Option<(u32, bool)>,
    /// Methods asked for.
    seen: Vec<String>,
}

#[derive(Debug, Clone)]
struct Fake {
    address: String,
    state: Arc<Mutex<State>>,
}

struct Asked {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Fake {
    async fn start(state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(state));
        let served = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, served.clone()));
            }
        });
        Self { address, state }
    }

    fn client(&self) -> WebdavClient {
        let text = format!(
            "type: webdav\nwebdav-url: http://{}\nwebdav-username: u\nwebdav-password: p\npath: /x",
            self.address
        );
        let ReplicaKind::Webdav(settings) = replica(&text, &[]) else { panic!("not a WebDAV replica") };
        WebdavClient::new(settings, World::system())
    }

    fn files(&self) -> Vec<(String, Vec<u8>)> {
        self.state.lock().unwrap().files.clone().into_iter().collect()
    }

    fn take_seen(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut stream = BufReader::new(stream);
    while let Some(asked) = read(&mut stream).await {
        let (status, headers, body) = answer(&mut state.lock().unwrap(), &asked);
        let text = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len());
        if stream.get_mut().write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut words = lines.first()?.split(' ').map(str::to_owned);
    let headers: BTreeMap<String, String> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let len = headers.get("content-length").map_or(0, |len| len.parse().unwrap());
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await.ok()?;
    Some(Asked { method: words.next()?, path: words.next()?.trim_end_matches('/').to_owned(), headers, body })
}

fn answer(state: &mut State, asked: &Asked) -> (u16, String, String) {
    state.seen.push(asked.method.clone());
    let plain = |status| (status, String::new(), String::new());
    if let Some((nonce, right)) = state.nonce {
        let shown = asked.headers.get("authorization").is_some_and(|a| a.contains(&format!("nonce=\"n{nonce}\"")));
        if !shown || !right {
            if shown {
                state.nonce = Some((nonce + 1, right));
            }
            let nonce = state.nonce.unwrap().0;
            let wanted = format!("WWW-Authenticate: Digest realm=\"x\", nonce=\"n{nonce}\", qop=\"auth\"\r\n");
            return (401, wanted, String::new());
        }
    }
    match asked.method.as_str() {
        "OPTIONS" => plain(200),
        "MKCOL" => plain(201),
        "PUT" => {
            state.files.insert(asked.path.clone(), asked.body.clone());
            plain(201)
        }
        "DELETE" => plain(if state.files.remove(&asked.path).is_some() { 204 } else { 404 }),
        "MOVE" => {
            let to = asked.headers["destination"].splitn(4, '/').nth(3).map(|path| format!("/{path}")).unwrap();
            let there = state.files.contains_key(&to);
            if there && state.heeds_overwrite && asked.headers["overwrite"] == "F" {
                return plain(412);
            }
            match state.files.remove(&asked.path) {
                Some(body) => state.files.insert(to, body),
                None => return plain(404),
            };
            plain(if there { 204 } else { 201 })
        }
        "PROPFIND" => match state.files.get(&asked.path) {
            None => plain(404),
            Some(body) => {
                let found = format!(
                    "<D:multistatus xmlns:D=\"DAV:\"><D:response><D:href>{}</D:href><D:propstat><D:prop><D:resourcetype/>\
                     <D:getcontentlength>{}</D:getcontentlength></D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat>\
                     </D:response></D:multistatus>",
                    asked.path,
                    body.len()
                );
                (207, String::new(), found)
            }
        },
        _ => plain(405),
    }
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn exclusive() -> PutOptions {
    PutOptions { stamp: Timestamp::from_millis(1_795_221_709_248), size: None, modes: None, exclusive: true }
}

#[tokio::test]
async fn a_server_that_ignores_overwrite_is_found_out_and_looked_at_before_each_move() {
    let fake = Fake::start(State::default()).await;
    let (ours, theirs) = (fake.client(), fake.client());
    assert_eq!(ours.exclusion(), Exclusion::Untried);
    ours.put(&key("ltx/0/a"), once("ours"), exclusive()).await.unwrap();
    assert_eq!((ours.exclusion(), theirs.exclusion()), (Exclusion::Missing, Exclusion::Missing));
    let err = theirs.put(&key("ltx/0/a"), once("theirs"), exclusive()).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Exists);
    theirs.put(&key("ltx/0/b"), once("theirs"), exclusive()).await.unwrap();
    // What was refused is taken away in the background.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    let want = [("/x/ltx/0/a".to_owned(), b"ours".to_vec()), ("/x/ltx/0/b".to_owned(), b"theirs".to_vec())];
    assert_eq!(fake.files(), want);
    assert_eq!(ours.stats().count(Operation::Put).1, 0, "a trial is no failure");
}

#[tokio::test]
async fn a_server_that_heeds_overwrite_is_tried_once_and_believed() {
    let fake = Fake::start(State { heeds_overwrite: true, ..State::default() }).await;
    let client = fake.client();
    client.put(&key("ltx/0/a"), once("x"), exclusive()).await.unwrap();
    assert_eq!(client.exclusion(), Exclusion::Refusal);
    fake.take_seen();
    let other = fake.client();
    other.put(&key("ltx/0/b"), once("x"), exclusive()).await.unwrap();
    assert_eq!(fake.take_seen(), ["OPTIONS", "MKCOL", "PUT", "MOVE"]);
    let err = client.put(&key("ltx/0/b"), once("y"), exclusive()).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Exists);
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(fake.files().len(), 2, "{:?}", fake.files());
}

#[tokio::test]
async fn a_server_that_forgets_its_digest_numbers_is_asked_again() {
    let fake = Fake::start(State { heeds_overwrite: true, nonce: Some((1, true)), ..State::default() }).await;
    let client = fake.client();
    client.put(&key("ltx/0/a"), once("x"), exclusive()).await.unwrap();
    // Started again: the old number is unknown, and not called stale.
    fake.state.lock().unwrap().nonce = Some((70, true));
    client.put(&key("ltx/0/b"), once("x"), exclusive()).await.unwrap();
    client.delete(&[key("ltx/0/a")]).await.unwrap();
    assert_eq!(fake.files().len(), 1);
}

#[tokio::test]
async fn a_wrong_password_is_final_although_the_server_has_a_new_number_each_time() {
    let fake = Fake::start(State { nonce: Some((1, false)), ..State::default() }).await;
    let client = fake.client();
    let err = client.put(&key("ltx/0/a"), once("x"), exclusive()).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::PermissionDenied, "{err}");
    assert!(fake.take_seen().len() <= 3);
}
