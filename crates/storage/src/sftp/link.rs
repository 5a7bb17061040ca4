//! The connection to a server: made when it is needed, made again when it was lost, shared by all replicas that log in
//! there the same way.
//!
//! Whoever needs it while it comes about waits for that one attempt and shares its failure: ten listings with a wrong
//! password are one failed login and not ten, which some servers answer with a ban.

use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use futures::future::{BoxFuture, FutureExt, Shared};

use super::super::refusal::Refusal;
use super::connect::connect;
use super::session::Session;
use crate::error::Result;
use crate::settings::SftpSettings;

type Attempt = Shared<BoxFuture<'static, Result<Arc<Session>, Refusal>>>;

#[derive(Debug)]
enum State {
    Idle,
    Connecting(Attempt),
    Up(Arc<Session>),
}

/// A server, and how to log in there.
#[derive(Debug)]
pub(super) struct Link {
    settings: SftpSettings,
    /// Connections are driven by tasks of the runtime that opened them and die with it.
    runtime: tokio::runtime::Id,
    state: Mutex<State>,
}

impl Link {
    /// The link for these settings; one for all who would log in the same way.
    pub(super) fn shared(settings: &SftpSettings) -> Arc<Self> {
        static LINKS: LazyLock<Mutex<Vec<Weak<Link>>>> = LazyLock::new(Mutex::default);
        let runtime = tokio::runtime::Handle::current().id();
        let mut links = LINKS.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|link| link.strong_count() > 0);
        let found = links.iter().filter_map(Weak::upgrade);
        let same = |link: &Arc<Self>| link.runtime == runtime && same_login(&link.settings, settings);
        if let Some(link) = found.into_iter().find(same) {
            return link;
        }
        let link = Arc::new(Self { settings: settings.clone(), runtime, state: Mutex::new(State::Idle) });
        links.push(Arc::downgrade(&link));
        link
    }

    /// A session that was up a moment ago.
    ///
    /// # Errors
    /// Those of connecting.
    pub(super) async fn session(&self) -> Result<Arc<Session>> {
        let attempt = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            match &*state {
                State::Up(session) if session.is_up() => return Ok(session.clone()),
                State::Connecting(attempt) => attempt.clone(),
                State::Idle | State::Up(_) => {
                    let settings = self.settings.clone();
                    let connecting =
                        async move { connect(&settings).await.map(Arc::new).map_err(|err| Refusal::of(&err)) };
                    let attempt = connecting.boxed().shared();
                    *state = State::Connecting(attempt.clone());
                    attempt
                }
            }
        };
        let outcome = attempt.clone().await;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // The first who hears of it writes it down.
        if let State::Connecting(current) = &*state
            && current.ptr_eq(&attempt)
        {
            *state = match &outcome {
                Ok(session) => State::Up(session.clone()),
                Err(_) => State::Idle,
            };
        }
        outcome.map_err(Refusal::into_error)
    }
}

fn same_login(a: &SftpSettings, b: &SftpSettings) -> bool {
    (&a.host, &a.user, &a.password, &a.key_path, &a.host_key, &a.known_hosts, &a.agent)
        == (&b.host, &b.user, &b.password, &b.key_path, &b.host_key, &b.known_hosts, &b.agent)
}
