//! What a service manager wants to know (`sd_notify`): that we are ready, that we are stopping, that we
//! are alive. Without `NOTIFY_SOCKET` nothing is sent; a manager that does not listen is no error.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::config::Environment;
use crate::sys::TaskGroup;

/// Variables meant for us alone, not for our children.
pub(super) const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// The way to the service manager.
#[derive(Debug, Clone)]
pub(super) struct Service {
    socket: Option<String>,
    /// How long we may be silent.
    watchdog: Option<Duration>,
}

impl Service {
    /// As the environment says.
    pub(super) fn new(env: &Environment) -> Self {
        let socket = env.get_nonempty("NOTIFY_SOCKET").map(str::to_owned);
        let for_us = env.get_nonempty("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let silence = env.get("WATCHDOG_USEC").and_then(|usec| usec.parse().ok()).map(Duration::from_micros);
        Self { socket, watchdog: silence.filter(|d| for_us && !d.is_zero()) }
    }

    /// Everything is open and replicating.
    pub(super) fn ready(&self, databases: usize) {
        self.send(&format!("READY=1\nSTATUS=Replicating {databases} database(s)"));
    }

    /// The final sync has begun.
    pub(super) fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=Final sync");
    }

    /// Says twice per watchdog period that the runtime is alive, until the group is stopped.
    pub(super) fn keep_alive(&self, tasks: &mut TaskGroup) {
        let Some(period) = self.watchdog.filter(|_| self.socket.is_some()) else { return };
        let service = self.clone();
        tasks.spawn("watchdog", move |stop: CancellationToken| async move {
            loop {
                service.send("WATCHDOG=1");
                if stop.run_until_cancelled(tokio::time::sleep(period / 2)).await.is_none() {
                    return;
                }
            }
        });
    }

    fn send(&self, message: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(err) = send_to(socket, message) {
            debug!(error = %err, "cannot notify the service manager");
        }
    }
}

fn send_to(socket: &str, message: &str) -> std::io::Result<()> {
    let from = UnixDatagram::unbound()?;
    from.set_nonblocking(true)?;
    #[cfg(target_os = "linux")]
    if let Some(name) = socket.strip_prefix('@') {
        use std::os::linux::net::SocketAddrExt as _;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        return from.send_to_addr(message.as_bytes(), &address).map(drop);
    }
    from.send_to(message.as_bytes(), socket).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn service(vars: &[(&str, &str)]) -> Service {
        let vars = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Service::new(&Environment::new(vars, PathBuf::from("/")))
    }

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let n = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    }

    #[tokio::test]
    async fn ready_alive_and_stopping_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let service = service(&[("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "20000")]);
        service.ready(2);
        assert!(received(&socket).starts_with("READY=1\n"));
        let mut tasks = TaskGroup::default();
        service.keep_alive(&mut tasks);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(received(&socket), "WATCHDOG=1");
        assert_eq!(received(&socket), "WATCHDOG=1");
        tasks.stop().await;
        service.stopping();
        while received(&socket) == "WATCHDOG=1" {}
    }

    #[test]
    fn nobody_to_tell_is_no_error_and_another_process_has_its_own_watchdog() {
        service(&[]).ready(0);
        service(&[("NOTIFY_SOCKET", "/no/such/socket")]).ready(0);
        assert!(service(&[("WATCHDOG_USEC", "1000000"), ("WATCHDOG_PID", "1")]).watchdog.is_none());
        assert!(service(&[("WATCHDOG_USEC", "zero")]).watchdog.is_none());
    }
}
