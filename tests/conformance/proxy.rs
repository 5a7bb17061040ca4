//! A line that can be cut: a relay in front of a server, for tests of what becomes of lost connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A relay on loopback. Ends with its owner.
pub(crate) struct Line {
    address: SocketAddr,
    cuts: watch::Sender<usize>,
    accepted: Arc<AtomicUsize>,
}

impl Line {
    /// Relays to `server`, a `host:port`.
    pub(crate) async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cuts, cut) = watch::channel(0);
        let accepted = Arc::new(AtomicUsize::new(0));
        let (server, count) = (server.to_owned(), accepted.clone());
        let mut ended = cut.clone();
        tokio::spawn(async move {
            loop {
                let mut near = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    // The owner has gone.
                    gone = async { while ended.changed().await.is_ok() {} } => return gone,
                };
                count.fetch_add(1, Ordering::Relaxed);
                let (server, mut cut) = (server.clone(), cut.clone());
                tokio::spawn(async move {
                    cut.mark_unchanged();
                    let Ok(mut far) = TcpStream::connect(server).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { address, cuts, accepted }
    }

    /// Where to connect to.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Cuts all connections there are. New ones work.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Connections that were made.
    pub(crate) fn connections(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}
