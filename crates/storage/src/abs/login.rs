//! Logging in without a key: what the platform offers, in the order of Microsoft's own chain. The first that gives a
//! token is kept.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use azure_core::credentials::{AccessToken, Secret, TokenCredential, TokenRequestOptions};
use azure_core::error::{Error, ErrorKind, Result};
use azure_core::http::ClientOptions;
use azure_identity::{
    AzureCliCredential, AzureDeveloperCliCredential, ClientAssertionCredentialOptions, ClientSecretCredential,
    ClientSecretCredentialOptions, ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId,
    WorkloadIdentityCredential, WorkloadIdentityCredentialOptions,
};
use tokio::sync::OnceCell;

use super::super::requests::bounded_by_itself;
use crate::settings::AzureLogin;

/// How long one source may take to answer for the first time. Where there is no metadata service, asking it often
/// means silence.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// A way to log in, or why there is none.
type Source = (&'static str, Result<Arc<dyn TokenCredential>>);

/// The chain.
pub(super) struct Login {
    sources: Vec<Source>,
    /// Index of the source that works.
    found: OnceCell<usize>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.sources.iter().map(|(name, _)| name)).finish()
    }
}

impl Login {
    pub(super) fn new(env: &AzureLogin, options: &ClientOptions) -> Self {
        let sources = vec![
            ("environment", service_principal(env, options)),
            ("workload identity", workload_identity(options)),
            ("managed identity", managed_identity(env, options)),
            ("Azure CLI", AzureCliCredential::new(None).map(|c| c as Arc<dyn TokenCredential>)),
            ("Azure Developer CLI", AzureDeveloperCliCredential::new(None).map(|c| c as Arc<dyn TokenCredential>)),
        ];
        Self { sources, found: OnceCell::new() }
    }

    /// The first token, and where it came from.
    async fn search(&self, scopes: &[&str]) -> Result<(usize, AccessToken)> {
        let mut refusals = Vec::new();
        for (n, (name, source)) in self.sources.iter().enumerate() {
            let refusal = match source {
                Err(err) => err.to_string(),
                Ok(source) => match in_time(source.get_token(scopes, None)).await {
                    Ok(Ok(token)) => return Ok((n, token)),
                    Ok(Err(err)) => super::super::web::chain(&err),
                    Err(_) => format!("no answer within {}s", FIRST_ANSWER.as_secs()),
                },
            };
            let refusal = refusal.lines().next().unwrap_or_default().to_owned();
            refusals.push(format!("{name}: {refusal}"));
        }
        let text = format!("no way to log in to Azure works: {}", refusals.join("; "));
        Err(Error::with_message(ErrorKind::Credential, text))
    }
}

/// Waits for a token as long as one source may take.
async fn in_time<T>(token: impl Future<Output = T>) -> std::result::Result<T, tokio::time::error::Elapsed> {
    bounded_by_itself(tokio::time::timeout(FIRST_ANSWER, token)).await
}

#[async_trait]
impl TokenCredential for Login {
    async fn get_token(&self, scopes: &[&str], options: Option<TokenRequestOptions<'_>>) -> Result<AccessToken> {
        if let Some(n) = self.found.get()
            && let (_, Ok(source)) = &self.sources[*n]
        {
            return source.get_token(scopes, options).await;
        }
        let (n, token) = self.search(scopes).await?;
        // Somebody else may have found the same meanwhile.
        let _ = self.found.set(n);
        tracing::debug!(source = self.sources[n].0, "logged in to Azure");
        Ok(token)
    }
}

fn missing(text: &'static str) -> Error {
    Error::with_message(ErrorKind::Credential, text)
}

fn service_principal(env: &AzureLogin, options: &ClientOptions) -> Result<Arc<dyn TokenCredential>> {
    let (Some(tenant), Some(client)) = (&env.tenant, &env.client) else {
        return Err(missing("AZURE_TENANT_ID and AZURE_CLIENT_ID are not set"));
    };
    let Some(secret) = &env.secret else {
        return Err(missing(match env.certificate {
            true => "client certificates are not supported: set AZURE_CLIENT_SECRET",
            false => "AZURE_CLIENT_SECRET is not set",
        }));
    };
    let options = ClientSecretCredentialOptions { client_options: options.clone() };
    let secret = Secret::new(secret.expose().to_owned());
    Ok(ClientSecretCredential::new(tenant, client.clone(), secret, Some(options))?)
}

fn workload_identity(options: &ClientOptions) -> Result<Arc<dyn TokenCredential>> {
    let options = WorkloadIdentityCredentialOptions {
        credential_options: ClientAssertionCredentialOptions { client_options: options.clone() },
        ..Default::default()
    };
    Ok(WorkloadIdentityCredential::new(Some(options))?)
}

fn managed_identity(env: &AzureLogin, options: &ClientOptions) -> Result<Arc<dyn TokenCredential>> {
    let options = ManagedIdentityCredentialOptions {
        user_assigned_id: env.client.clone().map(UserAssignedId::ClientId),
        client_options: options.clone(),
    };
    Ok(ManagedIdentityCredential::new(Some(options))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Fake(Option<&'static str>);

    #[async_trait]
    impl TokenCredential for Fake {
        async fn get_token(&self, _: &[&str], _: Option<TokenRequestOptions<'_>>) -> Result<AccessToken> {
            match self.0 {
                Some(token) => Ok(AccessToken::new(token.to_owned(), azure_core::time::OffsetDateTime::now_utc())),
                None => Err(missing("not here")),
            }
        }
    }

    fn login(sources: Vec<Source>) -> Login {
        Login { sources, found: OnceCell::new() }
    }

    #[tokio::test]
    async fn the_first_source_that_works_is_kept() {
        let chain = login(vec![
            ("a", Err(missing("nothing set"))),
            ("b", Ok(Arc::new(Fake(None)))),
            ("c", Ok(Arc::new(Fake(Some("token"))))),
        ]);
        for _ in 0..2 {
            assert_eq!(chain.get_token(&["scope"], None).await.unwrap().token.secret(), "token");
        }
        assert_eq!(chain.found.get(), Some(&2));
    }

    #[tokio::test]
    async fn all_that_was_tried_is_named() {
        let chain = login(vec![("a", Err(missing("nothing set"))), ("b", Ok(Arc::new(Fake(None))))]);
        let text = chain.get_token(&["scope"], None).await.unwrap_err().to_string();
        assert!(text.contains("a: nothing set; b: not here"), "{text}");
    }

    #[test]
    fn certificates_are_refused_with_a_reason() {
        let env =
            AzureLogin { tenant: Some("t".to_owned()), client: Some("c".to_owned()), secret: None, certificate: true };
        let err = service_principal(&env, &ClientOptions::default()).unwrap_err();
        assert!(err.to_string().contains("AZURE_CLIENT_SECRET"));
    }
}
