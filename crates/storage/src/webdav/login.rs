//! Basic and Digest authentication (RFC 7617, RFC 7616): nothing is sent before the server says which it wants, and a
//! password goes out in clear only if it does not know Digest.

use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use digest_auth::{AuthContext, HttpMethod, WwwAuthenticateHeader};
use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

use crate::settings::Secret;

/// Who logs in, and what the server wants to see.
pub(super) struct Login {
    username: String,
    password: Option<Secret>,
    wanted: Mutex<Wanted>,
}

enum Wanted {
    Nothing,
    Basic,
    Digest(Box<WwwAuthenticateHeader>),
}

impl Login {
    pub(super) fn new(username: Option<String>, password: Option<Secret>) -> Self {
        Self { username: username.unwrap_or_default(), password, wanted: Mutex::new(Wanted::Nothing) }
    }

    fn password(&self) -> &str {
        self.password.as_ref().map_or("", Secret::expose)
    }

    /// Whether there is anybody to log in.
    pub(super) fn is_given(&self) -> bool {
        !self.username.is_empty() || self.password.is_some()
    }

    /// The header for a request, if one is wanted. `uri` is the target as it is sent.
    pub(super) fn header(&self, method: &str, uri: &str) -> Option<String> {
        match &mut *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) {
            Wanted::Nothing => None,
            Wanted::Basic => Some(format!("Basic {}", BASE64.encode(format!("{}:{}", self.username, self.password())))),
            Wanted::Digest(challenge) => {
                let method = HttpMethod::from(method.to_owned());
                let context =
                    AuthContext::new_with_method(self.username.as_str(), self.password(), uri, None::<&[u8]>, method);
                challenge.respond(&context).ok().map(|answer| answer.to_header_string())
            }
        }
    }

    /// Takes in the challenge of a refused request that carried `sent`; whether it is worth another try. A server that
    /// has a new number each time says so of a wrong password, too: whoever asks must count.
    pub(super) fn challenged(&self, headers: &HeaderMap, sent: Option<&str>) -> bool {
        if !self.is_given() {
            return false;
        }
        let challenges = || headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let starts =
            |text: &str, scheme: &str| text.get(..scheme.len()).is_some_and(|t| t.eq_ignore_ascii_case(scheme));
        let digest = challenges().filter(|text| starts(text, "digest")).find_map(|text| digest_auth::parse(text).ok());
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(challenge) = digest {
            // The same number again, and not because it was old: the password is what is wrong. A number that the
            // server no longer knows (it was restarted) is not always said to be old.
            let same = |sent: &str| starts(sent, "digest") && sent.contains(&format!("nonce=\"{}\"", challenge.nonce));
            let again = challenge.stale || !sent.is_some_and(same);
            *wanted = Wanted::Digest(Box::new(challenge));
            return again;
        }
        if challenges().any(|text| starts(text, "basic")) && !sent.is_some_and(|sent| starts(sent, "basic")) {
            *wanted = Wanted::Basic;
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login() -> Login {
        Login::new(Some("Mufasa".to_owned()), Some(Secret::new("Circle of Life")))
    }

    fn challenge(text: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, text.parse().unwrap());
        headers
    }

    #[test]
    fn nothing_is_sent_before_it_is_wanted() {
        let login = login();
        assert_eq!(login.header("GET", "/"), None);
        assert!(login.challenged(&challenge("Basic realm=\"x\""), None));
        let sent = login.header("GET", "/").unwrap();
        assert_eq!(sent, "Basic TXVmYXNhOkNpcmNsZSBvZiBMaWZl");
        // Refused all the same.
        assert!(!login.challenged(&challenge("Basic realm=\"x\""), Some(&sent)));
        assert!(!Login::new(None, None).challenged(&challenge("Basic realm=\"x\""), None));
    }

    #[test]
    fn digest_is_preferred_and_does_not_show_the_password() {
        let login = login();
        let mut both = challenge("Basic realm=\"x\"");
        both.append(
            WWW_AUTHENTICATE,
            "Digest realm=\"x\", nonce=\"abc\", qop=\"auth\", algorithm=MD5".parse().unwrap(),
        );
        assert!(login.challenged(&both, None));
        let sent = login.header("PROPFIND", "/a%20b/").unwrap();
        assert!(sent.starts_with("Digest ") && sent.contains("uri=\"/a%20b/\"") && !sent.contains("Circle"), "{sent}");
        // Each answer counts up.
        assert!(sent.contains("nc=00000001") && login.header("GET", "/").unwrap().contains("nc=00000002"));
        assert!(!login.challenged(&both, Some(&sent)));
        let old = challenge("Digest realm=\"x\", nonce=\"def\", qop=\"auth\", stale=true");
        assert!(login.challenged(&old, Some(&sent)));
        // Another number without a word of the old one.
        let new = challenge("Digest realm=\"x\", nonce=\"ghi\", qop=\"auth\"");
        let sent = login.header("GET", "/").unwrap();
        assert!(login.challenged(&new, Some(&sent)));
        let sent = login.header("GET", "/").unwrap();
        assert!(!login.challenged(&new, Some(&sent)));
        assert!(login.challenged(&old, Some(&sent)));
        assert!(login.header("GET", "/").unwrap().contains("nonce=\"def\""));
    }
}
