//! Settings → SDK client.

use std::sync::Arc;

use azure_core::http::{ClientOptions, RetryOptions, Transport as SdkTransport, Url};
use azure_storage_blob::{BlobContainerClient, BlobContainerClientOptions};

use super::super::web::{Trust, Web};
use super::login::Login;
use super::sign::SharedKey;
use super::transport::Transport;
use crate::error::{Error, Result};
use crate::settings::{AbsAuth, AbsSettings};
use crate::sys::Clock;

/// Makes a client. Makes no request.
pub(super) fn connect(settings: &AbsSettings, clock: Arc<dyn Clock>) -> Result<BlobContainerClient> {
    settings.check()?;
    let web = Web::shared(&Trust::System)?;
    let mut options = options(&web);
    let mut url = container(settings)?;
    let mut login: Option<Arc<dyn azure_core::credentials::TokenCredential>> = None;
    match &settings.auth {
        AbsAuth::SasToken(sas) => url.set_query(Some(sas.expose())),
        AbsAuth::AccountKey(_) => {
            let account = settings.account.as_deref().unwrap_or_default();
            let key = settings.account_key()?.unwrap_or_default();
            options.per_try_policies.push(Arc::new(SharedKey::new(account, &key, clock)));
        }
        AbsAuth::Platform(env) => {
            if url.scheme() != "https" {
                let text = "authenticated requests are not permitted for non TLS protected (https) endpoints";
                return Err(Error::invalid("abs: cannot create client")
                    .caused_by(text)
                    .hint("set account-key or sas-token, or use an https endpoint"));
            }
            login = Some(Arc::new(Login::new(env, &options)));
        }
    }
    let options = BlobContainerClientOptions { client_options: options, ..Default::default() };
    BlobContainerClient::new(url, login, Some(options))
        .map_err(|e| Error::invalid("abs: cannot create client").caused_by(e))
}

/// Retries and deadlines are ours, around each request: see `replica::requests`.
fn options(web: &Web) -> ClientOptions {
    ClientOptions {
        retry: RetryOptions::none(),
        transport: Some(SdkTransport::new(Arc::new(Transport(web.clone())))),
        ..Default::default()
    }
}

/// The container's URL. An endpoint is used as given, and may hold a path (the account, for emulators).
fn container(settings: &AbsSettings) -> Result<Url> {
    let endpoint = match (&settings.endpoint, &settings.account) {
        (Some(endpoint), _) => endpoint.clone(),
        (None, account) => format!("https://{}.blob.core.windows.net", account.as_deref().unwrap_or_default()),
    };
    let bad =
        || Error::invalid("abs: invalid endpoint").at(&endpoint).hint("an endpoint begins with https:// or http://");
    let mut url = Url::parse(&endpoint).map_err(|e| bad().caused_by(e))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad());
    }
    url.path_segments_mut().map_err(|()| bad())?.pop_if_empty().push(&settings.bucket);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{AzureLogin, Secret};

    fn settings(account: Option<&str>, endpoint: Option<&str>, auth: AbsAuth) -> AbsSettings {
        AbsSettings {
            account: account.map(str::to_owned),
            endpoint: endpoint.map(str::to_owned),
            bucket: "c".to_owned(),
            path: "p".to_owned(),
            auth,
        }
    }

    #[test]
    fn the_container_is_below_the_endpoint() {
        let platform = || AbsAuth::Platform(AzureLogin::default());
        for (account, endpoint, want) in [
            (Some("acct"), None, "https://acct.blob.core.windows.net/c"),
            (Some("acct"), Some("http://127.0.0.1:10000/acct"), "http://127.0.0.1:10000/acct/c"),
            (None, Some("https://x.test/"), "https://x.test/c"),
        ] {
            assert_eq!(container(&settings(account, endpoint, platform())).unwrap().as_str(), want);
        }
        for bad in ["127.0.0.1:10000/acct", "ftp://x.test", "not a url"] {
            let err = container(&settings(None, Some(bad), platform())).unwrap_err();
            assert!(err.hint_text().is_some(), "{bad}");
        }
    }

    #[tokio::test]
    async fn what_cannot_work_is_refused_without_a_request() {
        let clock: Arc<dyn Clock> = Arc::new(crate::sys::SystemClock::new());
        for (settings, want) in [
            (settings(None, None, AbsAuth::Platform(AzureLogin::default())), "account name is required"),
            (settings(Some("a"), None, AbsAuth::AccountKey(Secret::new("no base64!"))), "decode account key"),
            (settings(None, Some("http://x.test"), AbsAuth::Platform(AzureLogin::default())), "non TLS protected"),
        ] {
            let text = connect(&settings, clock.clone()).err().unwrap().to_string();
            assert!(text.contains(want) && !text.contains("no base64!"), "{text}");
        }
    }
}
