//! From settings to a session: reach the host, be sure who it is, log in, start SFTP.
//!
//! Whom we take for the server is decided by `host_key` in this file, a pure function; only keys that could be accepted
//! are asked for, so that a server with several keys shows the one we know.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::client::{self, AuthResult, Handle};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::known_hosts::known_host_keys_path;
use russh::keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{AlgorithmKind, ChannelMsg, Preferred};
use tokio::net::TcpStream;

use super::super::requests::progress;
use super::prompt::Prompt;
use super::session::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::settings::{HostKey, SftpSettings};
use crate::sys::blocking;

/// How long a host may take to be reached.
const DIAL: Duration = Duration::from_secs(10);
/// How long keys may be exchanged.
const HANDSHAKE: Duration = Duration::from_secs(20);
/// How long logging in and starting SFTP may take; servers make those wait whom they refuse.
const LOGIN: Duration = Duration::from_secs(30);
/// A silent server is asked for a sign of life so often, and given up after three without answer.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Bytes the server may send ahead of what was read.
const WINDOW: u32 = 4 << 20;

/// Connects, logs in and starts SFTP.
pub(super) async fn connect(settings: &SftpSettings) -> Result<Session> {
    let (host, port) = host_and_port(&settings.host)?;
    let key = private_key(settings).await?;
    let accepted = accepted_keys(settings, host, port).await?;
    let config = client::Config {
        window_size: WINDOW,
        maximum_packet_size: 65_535,
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: 3,
        nodelay: true,
        preferred: preferred(&accepted),
        ..client::Config::default()
    };
    let dialing = TcpStream::connect((host, port));
    let socket = match tokio::time::timeout(DIAL, dialing).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(err)) => return Err(unreachable(&settings.host, err.to_string())),
        Err(_) => return Err(unreachable(&settings.host, format!("no answer within {}s", DIAL.as_secs()))),
    };
    let _ = socket.set_nodelay(true);
    let refused = Arc::new(Mutex::new(None));
    let known = known_as(host, port);
    let watch = Watch { accepted, host: settings.host.clone(), known_as: known, refused: refused.clone() };
    let shaking = client::connect_stream(Arc::new(config), Prompt(socket), watch);
    let mut ssh = match tokio::time::timeout(HANDSHAKE, shaking).await {
        Ok(Ok(ssh)) => ssh,
        Ok(Err(err)) => return Err(handshake_failed(settings, &refused, err)),
        Err(_) => return Err(unreachable(&settings.host, "ssh: handshake timed out".to_owned())),
    };
    progress();
    let rest = async {
        log_in(&mut ssh, settings, key).await?;
        start(ssh).await
    };
    match tokio::time::timeout(LOGIN, rest).await {
        Ok(session) => session,
        Err(_) => Err(unreachable(&settings.host, "ssh: logging in timed out".to_owned())),
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`.
fn host_and_port(text: &str) -> Result<(&str, u16)> {
    let bad = || Error::invalid(format!("sftp: invalid host {text:?}")).hint("write host or host:port");
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port),
        None if text.starts_with('[') => return Err(bad()),
        None => match text.split_once(':') {
            // A bare IPv6 address.
            Some((_, port)) if port.contains(':') => (text, ""),
            Some((host, _)) => (host, &text[host.len()..]),
            None => (text, ""),
        },
    };
    match port.strip_prefix(':') {
        None if port.is_empty() && !host.is_empty() => Ok((host, 22)),
        Some(port) if !host.is_empty() => port.parse().map(|port| (host, port)).map_err(|_| bad()),
        _ => Err(bad()),
    }
}

/// What `known_hosts` calls a host.
fn known_as(host: &str, port: u16) -> String {
    if port == 22 { host.to_owned() } else { format!("[{host}]:{port}") }
}

/// What may prove that a host is the one we mean.
#[derive(Debug, Clone, PartialEq)]
enum Accepted {
    /// These keys. With none of them the server is only asked which it has, to say so.
    Keys(Vec<PublicKey>),
    /// Any key.
    Any,
}

async fn accepted_keys(settings: &SftpSettings, host: &str, port: u16) -> Result<Accepted> {
    let known = match settings.host_key {
        HostKey::Known => {
            let (files, host) = (settings.known_hosts.clone(), host.to_owned());
            blocking(move || known_keys(&files, &host, port)).await?
        }
        HostKey::Pinned(_) | HostKey::Any => Vec::new(),
    };
    host_key(&settings.host_key, known)
}

/// Decides whom we take for the server, given the keys `known_hosts` has for it.
fn host_key(policy: &HostKey, known: Vec<PublicKey>) -> Result<Accepted> {
    match policy {
        HostKey::Pinned(line) => match PublicKey::from_openssh(line.trim()) {
            // Without its comment.
            Ok(key) => Ok(Accepted::Keys(vec![PublicKey::from(key.key_data().clone())])),
            Err(_) => Err(Error::invalid("cannot parse sftp host key: ssh: no key found")
                .hint("host-key takes one line as `ssh-keyscan HOST` prints it, without the host: ssh-ed25519 AAAA…")),
        },
        HostKey::Known => Ok(Accepted::Keys(known)),
        HostKey::Any => Ok(Accepted::Any),
    }
}

/// Whether a `known_hosts` file has a key for the host of these settings. Blocks; asks nobody.
///
/// # Errors
/// The host cannot be understood; a file cannot be read, or holds no keys.
pub fn is_known(settings: &SftpSettings) -> Result<bool> {
    let (host, port) = host_and_port(&settings.host)?;
    known_keys(&settings.known_hosts, host, port).map(|keys| !keys.is_empty())
}

/// The keys that `known_hosts` files have for a host. Blocks.
fn known_keys(files: &[PathBuf], host: &str, port: u16) -> Result<Vec<PublicKey>> {
    let mut keys = Vec::new();
    for file in files {
        let found = known_host_keys_path(host, port, file)
            .map_err(|err| Error::invalid("sftp: read known hosts").at(file.display()).caused_by(err))?;
        keys.extend(found.into_iter().map(|(_, key)| key));
    }
    Ok(keys)
}

/// Asks the server only for keys that could be accepted.
fn preferred(accepted: &Accepted) -> Preferred {
    let mut preferred = Preferred::DEFAULT;
    if let Accepted::Keys(keys) = accepted {
        let wanted = |algorithm: &Algorithm| {
            keys.iter().any(|key| match (key.algorithm(), algorithm) {
                (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
                (have, want) => have == *want,
            })
        };
        let some: Vec<Algorithm> = preferred.key.iter().filter(|algorithm| wanted(algorithm)).cloned().collect();
        // Of a kind nobody knows: let the comparison say no.
        if !some.is_empty() {
            preferred.key = some.into();
        }
    }
    preferred
}

/// What the connection asks us while it comes about.
struct Watch {
    accepted: Accepted,
    host: String,
    /// What `known_hosts` would call it.
    known_as: String,
    refused: Arc<Mutex<Option<Refused>>>,
}

/// A key that was not accepted.
struct Refused {
    /// No key at all was expected.
    unknown: bool,
    text: String,
}

/// What to say of a key that is none of the `expected` ones: enough to compare it, and to write it down.
fn refusal(expected: &[PublicKey], known_as: &str, shown: &PublicKey) -> String {
    let (kind, print) = (shown.algorithm(), shown.fingerprint(HashAlg::Sha256));
    if !expected.is_empty() {
        return format!("ssh: host key mismatch: the server shows {kind} {print}");
    }
    // Without its comment.
    let line = PublicKey::from(shown.key_data().clone()).to_openssh().unwrap_or_default();
    format!(
        "ssh: unknown host {known_as}: it shows {kind} {print}, and neither host-key nor known_hosts has a key for it. \
         If that is its key, known_hosts needs the line `{known_as} {line}`, or the replica `host-key: \"{line}\"`"
    )
}

impl client::Handler for Watch {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else { return Ok(false) };
        match &self.accepted {
            Accepted::Any => {
                let fingerprint = key.fingerprint(HashAlg::Sha256);
                tracing::warn!(host = %self.host, key = %fingerprint, "sftp host key not verified");
                Ok(true)
            }
            Accepted::Keys(keys) if keys.iter().any(|known| known.key_data() == key.key_data()) => Ok(true),
            Accepted::Keys(keys) => {
                let refused = Refused { unknown: keys.is_empty(), text: refusal(keys, &self.known_as, key) };
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(refused);
                Ok(false)
            }
        }
    }

    async fn auth_banner(&mut self, banner: &str, _session: &mut client::Session) -> Result<(), russh::Error> {
        let text: String = banner.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1000).collect();
        tracing::info!(host = %self.host, banner = text.trim(), "sftp server says");
        Ok(())
    }
}

fn unreachable(host: &str, text: String) -> Error {
    Error::new(ErrorKind::Unavailable, "sftp: connect to").at(host).caused_by(text).hint("check host, port and network")
}

fn handshake_failed(settings: &SftpSettings, refused: &Mutex<Option<Refused>>, err: russh::Error) -> Error {
    let refused = refused.lock().unwrap_or_else(PoisonError::into_inner).take();
    let other_kind = matches!(&err, russh::Error::NoCommonAlgo { kind: AlgorithmKind::Key, .. });
    if refused.is_some() || (other_kind && settings.host_key != HostKey::Any) {
        let Refused { unknown, text } = refused.unwrap_or_else(|| Refused {
            unknown: false,
            text: format!("ssh: host key mismatch: the server has no key of that kind ({err})"),
        });
        let text = Error::new(ErrorKind::PermissionDenied, "ssh: handshake failed").caused_by(text);
        return text.hint(match settings.host_key {
            HostKey::Pinned(_) => "this is another server, or it has a new key: compare, then correct host-key",
            _ if unknown => {
                "compare the fingerprint with the server's (ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub there), \
                 then write it down as shown; `host-key: any` takes every server for the right one"
            }
            _ => "known_hosts has another key for this host: somebody may be in between. Compare, then correct it",
        });
    }
    let kind = match err {
        russh::Error::IO(_) | russh::Error::HUP | russh::Error::Disconnect | russh::Error::Join(_) => {
            ErrorKind::Unavailable
        }
        _ => ErrorKind::Invalid,
    };
    Error::new(kind, "ssh: handshake failed").caused_by(err)
}

/// The key file, which must not have a passphrase: nobody is there to type it.
async fn private_key(settings: &SftpSettings) -> Result<Option<Arc<PrivateKey>>> {
    let Some(path) = settings.key_path.clone() else { return Ok(None) };
    blocking(move || {
        // Never "not found": that is said of objects.
        let unreadable = |e: std::io::Error| {
            let text = Error::new(ErrorKind::PermissionDenied, "sftp: cannot read sftp key path: open").at(&path);
            text.caused_by(e).hint("key-path names a file this user can read; `~` is not expanded")
        };
        let text = std::fs::read_to_string(&path).map_err(unreadable)?;
        parse_key(&text)
            .map(|key| Some(Arc::new(key)))
            .map_err(|e| e.context(format!("sftp: cannot parse sftp key path {path}")))
    })
    .await
}

fn parse_key(text: &str) -> Result<PrivateKey> {
    let encrypted = || {
        Error::new(ErrorKind::PermissionDenied, "ssh: this private key is passphrase protected")
            .hint("use a key without a passphrase (ssh-keygen -p -f KEY), or an agent: leave key-path and password out")
    };
    if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(encrypted());
    }
    match russh::keys::decode_secret_key(text, None) {
        Ok(key) => Ok(key),
        Err(russh::keys::Error::KeyIsEncrypted) => Err(encrypted()),
        // Its cause may quote what stands in the file.
        Err(_) => Err(Error::new(ErrorKind::PermissionDenied, "ssh: no key found")
            .hint("key-path takes a private key in OpenSSH or PEM form")),
    }
}

type Ssh = Handle<Watch>;

/// Password, then key, as configured; without either the agent's keys.
async fn log_in(ssh: &mut Ssh, settings: &SftpSettings, key: Option<Arc<PrivateKey>>) -> Result<()> {
    let user = settings.user.as_str();
    let mut tried = vec!["none"];
    if let Some(password) = &settings.password {
        tried.push("password");
        if succeeded(ssh.authenticate_password(user, password.expose()).await)? {
            return Ok(());
        }
    }
    if let Some(key) = key.clone() {
        tried.push("publickey");
        let hashes: Vec<Option<HashAlg>> = match key.algorithm() {
            // Servers that do not tell what they take are old ones, or hide it.
            Algorithm::Rsa { .. } => match ssh.best_supported_rsa_hash().await.map_err(login_broke)? {
                Some(hash) => vec![hash],
                None => vec![Some(HashAlg::Sha512), None],
            },
            _ => vec![None],
        };
        for hash in hashes {
            let key = PrivateKeyWithHashAlg::new(key.clone(), hash);
            if succeeded(ssh.authenticate_publickey(user, key).await)? {
                return Ok(());
            }
        }
    }
    let mut hint = "check user, password and key-path; the server's log tells what it did not like";
    if settings.password.is_none() && key.is_none() {
        match &settings.agent {
            Some(socket) => {
                tried.push("publickey");
                if with_agent(ssh, user, socket).await? {
                    return Ok(());
                }
            }
            None => hint = "set password or key-path, or SSH_AUTH_SOCK to an agent's socket",
        }
    }
    let text =
        format!("ssh: unable to authenticate, attempted methods [{}], no supported methods remain", tried.join(" "));
    Err(Error::new(ErrorKind::PermissionDenied, "ssh: handshake failed").caused_by(text).hint(hint))
}

fn login_broke(err: russh::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "ssh: log in").caused_by(err)
}

fn succeeded(result: Result<AuthResult, russh::Error>) -> Result<bool> {
    Ok(result.map_err(login_broke)?.success())
}

/// Offers the agent's keys one after another.
async fn with_agent(ssh: &mut Ssh, user: &str, socket: &std::path::Path) -> Result<bool> {
    let broke = |err: String| {
        Error::new(ErrorKind::PermissionDenied, "ssh: ask the agent at")
            .at(socket.display())
            .caused_by(err)
            .hint("SSH_AUTH_SOCK names an agent that does not answer")
    };
    let mut agent = AgentClient::connect_uds(socket).await.map_err(|e| broke(e.to_string()))?;
    let identities = agent.request_identities().await.map_err(|e| broke(e.to_string()))?;
    let mut rsa = None;
    for identity in identities {
        let AgentIdentity::PublicKey { key, .. } = identity else { continue };
        let hash = match key.algorithm() {
            Algorithm::Rsa { .. } => {
                if rsa.is_none() {
                    let best = ssh.best_supported_rsa_hash().await.map_err(login_broke)?;
                    rsa = Some(best.unwrap_or(Some(HashAlg::Sha512)));
                }
                rsa.flatten()
            }
            _ => None,
        };
        // What this key cannot do, the next one may.
        if let Ok(AuthResult::Success) = ssh.authenticate_publickey_with(user, key, hash, &mut agent).await {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn start(ssh: Ssh) -> Result<Session> {
    let no = |text: String| {
        Error::new(ErrorKind::PermissionDenied, "ssh: start sftp")
            .caused_by(text)
            .hint("the server lets this user in, but does not offer SFTP: check its configuration (Subsystem sftp)")
    };
    let mut channel = ssh.channel_open_session().await.map_err(|e| no(e.to_string()))?;
    channel.request_subsystem(true, "sftp").await.map_err(|e| no(e.to_string()))?;
    loop {
        match channel.wait().await {
            Some(ChannelMsg::Success) => break,
            Some(ChannelMsg::WindowAdjusted { .. }) => {}
            Some(ChannelMsg::Failure) => return Err(no("ssh: subsystem request failed".to_owned())),
            Some(_) | None => return Err(no("ssh: the channel was closed".to_owned())),
        }
    }
    Session::start(channel.into_stream(), Box::new(ssh)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    fn key(line: &str) -> PublicKey {
        PublicKey::from_openssh(line).unwrap()
    }

    #[test]
    fn hosts_may_have_ports() {
        for (text, want) in [
            ("h", ("h", 22)),
            ("h:2222", ("h", 2222)),
            ("[::1]", ("::1", 22)),
            ("[::1]:7", ("::1", 7)),
            ("::1", ("::1", 22)),
        ] {
            assert_eq!(host_and_port(text).unwrap(), want, "{text}");
        }
        for bad in ["", "h:", "h:x", "h:70000", "[::1", "[]", "[::1]7"] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn whom_we_take_for_the_server() {
        let pinned = HostKey::Pinned(format!("{A} a comment\n"));
        assert_eq!(host_key(&pinned, Vec::new()).unwrap(), Accepted::Keys(vec![key(A)]));
        assert!(host_key(&HostKey::Pinned("ssh-ed25519 x".to_owned()), Vec::new()).is_err());
        assert_eq!(host_key(&HostKey::Any, vec![key(A)]).unwrap(), Accepted::Any);
        assert_eq!(host_key(&HostKey::Known, vec![key(A)]).unwrap(), Accepted::Keys(vec![key(A)]));
        assert_eq!(host_key(&HostKey::Known, Vec::new()).unwrap(), Accepted::Keys(Vec::new()));
    }

    #[test]
    fn a_key_that_is_refused_is_shown_as_it_would_be_written_down() {
        let print = key(A).fingerprint(HashAlg::Sha256).to_string();
        let unknown = refusal(&[], &known_as("h", 2222), &key(&format!("{A} a comment")));
        for part in ["unknown host [h]:2222", &print, &format!("`[h]:2222 {A}`"), &format!("`host-key: \"{A}\"`")] {
            assert!(unknown.contains(part), "{unknown}");
        }
        assert!(refusal(&[], &known_as("h", 22), &key(A)).contains(&format!("`h {A}`")));
        let mismatch = refusal(&[key(A)], "h", &key(A));
        assert!(mismatch.starts_with("ssh: host key mismatch") && mismatch.contains(&print), "{mismatch}");
    }

    #[test]
    fn only_keys_that_could_be_accepted_are_asked_for() {
        let some = preferred(&Accepted::Keys(vec![key(A)]));
        assert_eq!(some.key[..], [Algorithm::Ed25519]);
        assert!(preferred(&Accepted::Any).key.len() > 3);
        assert!(preferred(&Accepted::Keys(Vec::new())).key.len() > 3);
    }

    #[test]
    fn known_hosts_are_found_by_name_and_port() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("known_hosts");
        std::fs::write(&file, format!("# comment\nhost,other {A}\n[host]:2222 {A}\n")).unwrap();
        let files = [file, dir.path().join("absent")];
        assert_eq!(known_keys(&files, "host", 22).unwrap(), [key(A)]);
        assert_eq!(known_keys(&files, "host", 2222).unwrap(), [key(A)]);
        assert!(known_keys(&files, "host", 23).unwrap().is_empty());
        assert!(known_keys(&files, "nobody", 22).unwrap().is_empty());
    }

    #[test]
    fn a_key_with_a_passphrase_is_refused_with_a_reason() {
        let text = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n";
        assert!(parse_key(text).unwrap_err().to_string().contains("passphrase protected"));
        let err = parse_key("hunter2").unwrap_err();
        assert!(!err.to_string().contains("hunter2") && err.hint_text().is_some());
    }
}
