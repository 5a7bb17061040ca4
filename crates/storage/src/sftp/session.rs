//! One SFTP session over one SSH channel: many requests under way at a time, each with its own number.
//!
//! Two tasks own the channel's ends and stop when it ends, or when the session is dropped. What waits for an answer
//! then is told so: nothing waits for ever on a session that is gone. How much is under way is bounded by whoever
//! asks.

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::super::requests::progress;
use super::wire::{self, Attributes, Entry, Reply, Request, Status};
use crate::error::{Error, ErrorKind, Result};

/// How long the server may take to introduce itself.
const GREETING: Duration = Duration::from_secs(20);
/// Small packets are sent together, up to so many bytes.
const BATCH: usize = 64 * 1024;

/// Why a request brought nothing.
#[derive(Debug)]
pub(super) enum Problem {
    /// The server says no.
    Refused(Status),
    /// The session ended before the answer came; whether the request was carried out is unknown.
    Lost(String),
    /// The answer is not one to what was asked.
    Nonsense(&'static str),
}

impl Problem {
    /// The server's code, if it gave one.
    pub(super) fn code(&self) -> Option<u32> {
        match self {
            Self::Refused(status) => Some(status.code),
            _ => None,
        }
    }
}

type Answer<T> = Result<T, Problem>;

/// Requests that wait for their answer; `Err` once the session is over, and why.
type Waiting = Arc<Mutex<Result<HashMap<u32, oneshot::Sender<Reply>>, String>>>;

/// A session that is up, or was.
#[derive(Debug)]
pub(super) struct Session {
    out: mpsc::UnboundedSender<Bytes>,
    waiting: Waiting,
    next: AtomicU32,
    extensions: Vec<String>,
    /// Ends the tasks with the session.
    _tasks: DropGuard,
    /// The connection below, which lives as long.
    _connection: Box<dyn Any + Send + Sync>,
}

impl Session {
    /// Says hello on `channel`. `connection` is kept for as long as the session lives.
    ///
    /// # Errors
    /// The server does not speak version 3 of the protocol, or nothing at all.
    pub(super) async fn start<C>(mut channel: C, connection: Box<dyn Any + Send + Sync>) -> Result<Self>
    where
        C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let hello = async {
            channel.write_all(&wire::encode_init()).await?;
            channel.flush().await?;
            read_packet(&mut channel).await
        };
        let mut version = match tokio::time::timeout(GREETING, hello).await {
            Ok(Ok(packet)) => packet,
            Ok(Err(err)) => return Err(Error::new(ErrorKind::Unavailable, "sftp: start session").caused_by(err)),
            Err(_) => return Err(Error::new(ErrorKind::Unavailable, "sftp: the server does not start the session")),
        };
        let extensions = wire::decode_version(&mut version)?;
        let (read, write) = tokio::io::split(channel);
        let (out, packets) = mpsc::unbounded_channel();
        let waiting: Waiting = Arc::new(Mutex::new(Ok(HashMap::new())));
        let stop = CancellationToken::new();
        tokio::spawn({
            let (stop, waiting) = (stop.clone(), waiting.clone());
            async move {
                let ended = tokio::select! {
                    () = stop.cancelled() => "the session was closed".to_owned(),
                    ended = send_all(write, packets) => ended,
                };
                end(&waiting, ended);
                stop.cancel();
            }
        });
        tokio::spawn({
            let (stop, waiting, out) = (stop.clone(), waiting.clone(), out.downgrade());
            async move {
                let ended = tokio::select! {
                    () = stop.cancelled() => "the session was closed".to_owned(),
                    ended = receive_all(read, &waiting, &out) => ended,
                };
                end(&waiting, ended);
                stop.cancel();
            }
        });
        Ok(Self {
            out,
            waiting,
            next: AtomicU32::new(1),
            extensions,
            _tasks: stop.drop_guard(),
            _connection: connection,
        })
    }

    /// Whether requests can still be made.
    pub(super) fn is_up(&self) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_ok()
    }

    /// Whether the server offers an extension.
    pub(super) fn offers(&self, extension: &str) -> bool {
        self.extensions.iter().any(|offered| offered == extension)
    }

    /// Sends without caring for the answer: for cleaning up.
    pub(super) fn send(&self, request: &Request<'_>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let _ = self.out.send(request.encode(id));
    }

    /// Sends at once, in the order of the calls; the future is the answer.
    pub(super) fn ask(&self, request: &Request<'_>) -> impl Future<Output = Answer<Reply>> + Send + use<> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        let sent = match &mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) {
            Ok(waiting) => {
                waiting.insert(id, tx);
                Ok(())
            }
            Err(why) => Err(why.clone()),
        };
        if sent.is_ok() {
            let _ = self.out.send(request.encode(id));
        }
        let waiting = self.waiting.clone();
        async move {
            sent.map_err(Problem::Lost)?;
            let answer = rx.await.inspect(|_| progress());
            match answer {
                Ok(Reply::Status(status)) if status.code != Status::OK => Err(Problem::Refused(status)),
                Ok(reply) => Ok(reply),
                Err(_) => Err(Problem::Lost(why(&waiting))),
            }
        }
    }

    /// For requests that bring nothing but success.
    pub(super) fn run(&self, request: &Request<'_>) -> impl Future<Output = Answer<()>> + Send + use<> {
        let asked = self.ask(request);
        async move {
            match asked.await? {
                Reply::Status(_) => Ok(()),
                _ => Err(Problem::Nonsense("an answer instead of a status")),
            }
        }
    }

    /// Opens a file, or a directory for reading.
    pub(super) async fn open(self: &Arc<Self>, request: &Request<'_>) -> Answer<Handle> {
        match self.ask(request).await? {
            Reply::Handle(handle) => Ok(Handle { session: self.clone(), bytes: Some(handle) }),
            _ => Err(Problem::Nonsense("no handle for an opened file")),
        }
    }

    /// Facts about what a path names.
    pub(super) fn stat(&self, path: &str) -> impl Future<Output = Answer<Attributes>> + Send + use<> {
        let asked = self.ask(&Request::Stat { path });
        async move { attributes(asked.await?) }
    }
}

fn attributes(reply: Reply) -> Answer<Attributes> {
    match reply {
        Reply::Attributes(attributes) => Ok(attributes),
        _ => Err(Problem::Nonsense("no attributes for a file")),
    }
}

/// A file or directory the server holds open for us. Dropping it closes it.
#[derive(Debug)]
pub(super) struct Handle {
    session: Arc<Session>,
    bytes: Option<Bytes>,
}

impl Handle {
    fn bytes(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or_default()
    }

    /// Facts about the open file.
    pub(super) fn stat(&self) -> impl Future<Output = Answer<Attributes>> + Send + use<> {
        let asked = self.session.ask(&Request::Fstat { handle: self.bytes() });
        async move { attributes(asked.await?) }
    }

    /// Bytes at `offset`, perhaps fewer than `len`; none behind the end.
    pub(super) fn read(&self, offset: u64, len: u32) -> impl Future<Output = Answer<Bytes>> + Send + use<> {
        let asked = self.session.ask(&Request::Read { handle: self.bytes(), offset, len });
        async move {
            match asked.await {
                Ok(Reply::Data(data)) if data.len() <= len as usize => Ok(data),
                Ok(_) => Err(Problem::Nonsense("no data for a read")),
                Err(problem) if problem.code() == Some(Status::EOF) => Ok(Bytes::new()),
                Err(problem) => Err(problem),
            }
        }
    }

    /// The next lines of a directory; `None` at its end.
    pub(super) fn read_dir(&self) -> impl Future<Output = Answer<Option<Vec<Entry>>>> + Send + use<> {
        let asked = self.session.ask(&Request::ReadDir { handle: self.bytes() });
        async move {
            match asked.await {
                Ok(Reply::Names(entries)) => Ok(Some(entries)),
                Ok(_) => Err(Problem::Nonsense("no names for a directory")),
                Err(problem) if problem.code() == Some(Status::EOF) => Ok(None),
                Err(problem) => Err(problem),
            }
        }
    }

    /// Writes at `offset`.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> impl Future<Output = Answer<()>> + Send + use<> {
        self.session.run(&Request::Write { handle: self.bytes(), offset, data })
    }

    /// Sets access and modification time.
    pub(super) fn set_times(&self, seconds: u32) -> impl Future<Output = Answer<()>> + Send + use<> {
        self.session.run(&Request::SetTimes { handle: self.bytes(), seconds })
    }

    /// Makes the file durable, where the server can.
    pub(super) fn sync(&self) -> impl Future<Output = Answer<()>> + Send + use<> {
        let asked = self
            .session
            .offers(wire::FSYNC)
            .then(|| self.session.run(&Request::Extended { name: wire::FSYNC, fields: &[self.bytes()] }));
        async move {
            match asked {
                Some(asked) => asked.await,
                None => Ok(()),
            }
        }
    }

    /// Closes, and hears whether that went well: some servers write only then.
    pub(super) fn close(mut self) -> impl Future<Output = Answer<()>> + Send + use<> {
        let asked = self.bytes.take().map(|bytes| self.session.run(&Request::Close { handle: &bytes }));
        async move {
            match asked {
                Some(asked) => asked.await,
                None => Ok(()),
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(bytes) = self.bytes.take() {
            self.session.send(&Request::Close { handle: &bytes });
        }
    }
}

fn end(waiting: &Waiting, ended: String) {
    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    if waiting.is_ok() {
        *waiting = Err(ended);
    }
}

fn why(waiting: &Waiting) -> String {
    match &*waiting.lock().unwrap_or_else(PoisonError::into_inner) {
        Err(why) => why.clone(),
        Ok(_) => "the answer was dropped".to_owned(),
    }
}

async fn send_all<C: AsyncWrite>(mut to: WriteHalf<C>, mut packets: mpsc::UnboundedReceiver<Bytes>) -> String {
    let mut batch = BytesMut::new();
    while let Some(packet) = packets.recv().await {
        batch.extend_from_slice(&packet);
        while batch.len() < BATCH
            && let Ok(packet) = packets.try_recv()
        {
            batch.extend_from_slice(&packet);
        }
        let sent = async {
            to.write_all(&batch).await?;
            to.flush().await
        };
        if let Err(err) = sent.await {
            return format!("the connection was lost: {err}");
        }
        batch.clear();
    }
    "the session was closed".to_owned()
}

async fn receive_all<C: AsyncRead>(
    from: ReadHalf<C>,
    waiting: &Waiting,
    out: &mpsc::WeakUnboundedSender<Bytes>,
) -> String {
    let mut from = BufReader::with_capacity(BATCH, from);
    loop {
        let mut packet = match read_packet(&mut from).await {
            Ok(packet) => packet,
            Err(err) if err.kind() == std::io::ErrorKind::UnexpectedEof => {
                return "the server closed the connection".to_owned();
            }
            Err(err) => return format!("the connection was lost: {err}"),
        };
        let (id, reply) = match wire::decode_reply(&mut packet) {
            Ok(decoded) => decoded,
            Err(err) => return err.to_string(),
        };
        let asked = match &mut *waiting.lock().unwrap_or_else(PoisonError::into_inner) {
            Ok(waiting) => waiting.remove(&id),
            Err(why) => return why.clone(),
        };
        // An answer without a question is one to what was sent without caring.
        let Some(asked) = asked else { continue };
        if let Err(Reply::Handle(handle)) = asked.send(reply)
            && let Some(out) = out.upgrade()
        {
            // Whoever opened it has gone; the number is never waited for.
            let _ = out.send(Request::Close { handle: &handle }.encode(0));
        }
    }
}

async fn read_packet(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Bytes> {
    let len = from.read_u32().await? as usize;
    if len > wire::MAX_PACKET {
        let text = format!("the server sends a packet of {len} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, text));
    }
    let mut packet = BytesMut::zeroed(len);
    from.read_exact(&mut packet).await?;
    Ok(packet.freeze())
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A server that answers what the test says, by packet type.
    pub(in crate::sftp) async fn server(answer: impl Fn(u8, u32) -> Option<Vec<u8>> + Send + 'static) -> Arc<Session> {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            read_packet(&mut theirs).await.unwrap();
            theirs.write_all(&[0, 0, 0, 5, 2, 0, 0, 0, 3]).await.unwrap();
            while let Ok(packet) = read_packet(&mut theirs).await {
                let id = u32::from_be_bytes(packet[1..5].try_into().unwrap());
                let Some(body) = answer(packet[0], id) else { return };
                theirs.write_all(&u32::try_from(body.len()).unwrap().to_be_bytes()).await.unwrap();
                theirs.write_all(&body).await.unwrap();
            }
        });
        Arc::new(Session::start(ours, Box::new(())).await.unwrap())
    }

    pub(in crate::sftp) fn status(id: u32, code: u8) -> Vec<u8> {
        [&[101][..], &id.to_be_bytes(), &[0, 0, 0, code, 0, 0, 0, 2, b'n', b'o', 0, 0, 0, 0]].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{server, status};
    use super::*;

    #[tokio::test]
    async fn a_refusal_carries_its_code() {
        let session = server(|_, id| Some(status(id, 2))).await;
        let problem = session.stat("/x").await.unwrap_err();
        assert_eq!(problem.code(), Some(Status::NO_SUCH_FILE));
        assert!(session.is_up());
    }

    #[tokio::test]
    async fn everybody_hears_that_the_session_is_over() {
        let session = server(|kind, id| (kind != 14).then(|| status(id, 0))).await;
        let (removed, made) =
            (session.run(&Request::Remove { path: "a" }), session.run(&Request::MakeDir { path: "b" }));
        removed.await.unwrap();
        assert!(matches!(made.await, Err(Problem::Lost(_))));
        assert!(!session.is_up());
        assert!(matches!(session.stat("/x").await, Err(Problem::Lost(_))));
    }

    #[tokio::test]
    async fn an_answer_of_another_kind_is_no_success() {
        let session = server(|_, id| Some([&[102][..], &id.to_be_bytes(), &[0, 0, 0, 1, 7]].concat())).await;
        assert!(matches!(session.run(&Request::Remove { path: "a" }).await, Err(Problem::Nonsense(_))));
        assert!(matches!(session.stat("a").await, Err(Problem::Nonsense(_))));
    }
}
