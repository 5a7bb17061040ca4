//! Object stores besides S3: Google Cloud Storage, Azure Blob Storage, Alibaba Cloud OSS
//! (`spec: backends` §5–7).

use super::{ReplicaKeys, Secret, Surroundings, count, first, first_secret, given, parsed_url};
use crate::error::{Error, Result};

/// A Google Cloud Storage replica. Credentials are the platform's own.
#[derive(Debug, Clone)]
pub struct GsSettings {
    /// `STORAGE_EMULATOR_HOST`: where all requests go instead, without credentials. A scheme may be missing (`http`).
    pub emulator: Option<String>,
    /// `?endpoint=` of the URL, with its scheme: where all requests go instead, with credentials. Ours.
    pub endpoint: Option<String>,
    /// Name of the bucket.
    pub bucket: String,
    /// Prefix of all names; may be empty.
    pub path: String,
}

/// An Azure Blob Storage replica.
#[derive(Debug, Clone)]
pub struct AbsSettings {
    /// Storage account. Required where there is no endpoint, and to sign with a key.
    pub account: Option<String>,
    /// Endpoint as written; `None` = the account's own.
    pub endpoint: Option<String>,
    /// Name of the container.
    pub bucket: String,
    /// Prefix of all names; may be empty.
    pub path: String,
    /// How to log in.
    pub auth: AbsAuth,
}

/// How to log in to Azure.
#[derive(Debug, Clone)]
pub enum AbsAuth {
    /// A shared access signature, without a leading question mark.
    SasToken(Secret),
    /// The account's key, base64.
    AccountKey(Secret),
    /// What else the platform offers.
    Platform(AzureLogin),
}

/// What the environment says for logging in to Azure without a key (`AZURE_*`).
#[derive(Debug, Clone, Default)]
pub struct AzureLogin {
    /// `AZURE_TENANT_ID`
    pub tenant: Option<String>,
    /// `AZURE_CLIENT_ID`: of a service principal, or of the managed identity to use.
    pub client: Option<String>,
    /// `AZURE_CLIENT_SECRET`
    pub secret: Option<Secret>,
    /// `AZURE_CLIENT_CERTIFICATE_PATH` is set.
    pub certificate: bool,
}

impl AbsSettings {
    /// What can be said before anything is connected to.
    ///
    /// # Errors
    /// The texts of `spec: config` §9 C.
    pub fn check(&self) -> Result<()> {
        if self.account.is_none() && self.endpoint.is_none() {
            return Err(Error::invalid("abs: account name is required when endpoint is not specified"));
        }
        self.account_key().map(|_| ())
    }

    /// The key to sign with, decoded.
    ///
    /// # Errors
    /// It is not base64.
    pub fn account_key(&self) -> Result<Option<Vec<u8>>> {
        let AbsAuth::AccountKey(key) = &self.auth else { return Ok(None) };
        super::s3::decode_base64(key.expose()).map(Some).map_err(|why| {
            Error::invalid(format!("abs: cannot create shared key credential: decode account key: {why}"))
        })
    }
}

/// The parts of `AZURE_STORAGE_CONNECTION_STRING` that matter here.
#[derive(Default)]
struct ConnectionString {
    account: Option<String>,
    key: Option<Secret>,
    sas: Option<Secret>,
    endpoint: Option<String>,
}

impl ConnectionString {
    /// `Name=value` parts with semicolons between them; values may hold `=`. Unknown parts are skipped.
    fn parse(text: &str) -> Self {
        let mut parsed = Self::default();
        let (mut protocol, mut suffix) = ("https", None);
        for (name, value) in text.split(';').filter_map(|part| part.trim().split_once('=')) {
            match name.to_ascii_lowercase().as_str() {
                "accountname" => parsed.account = given(value),
                "accountkey" => parsed.key = Some(Secret::new(value)),
                "sharedaccesssignature" => parsed.sas = Some(Secret::new(value)),
                "blobendpoint" => parsed.endpoint = given(value.trim_end_matches('/')),
                "defaultendpointsprotocol" => protocol = value,
                "endpointsuffix" => suffix = given(value),
                _ => {}
            }
        }
        if let (None, Some(account), Some(suffix)) = (&parsed.endpoint, &parsed.account, suffix) {
            parsed.endpoint = Some(format!("{protocol}://{account}.blob.{suffix}"));
        }
        parsed
    }
}

/// An Alibaba Cloud OSS replica.
#[derive(Debug, Clone)]
pub struct OssSettings {
    /// Name of the bucket.
    pub bucket: String,
    /// Prefix of all keys, used verbatim: it may be empty, `.`, or begin with a slash.
    pub path: String,
    /// Region; `None` = the default region.
    pub region: Option<String>,
    /// Endpoint as written; without a scheme it means https. `None` = the region's own.
    pub endpoint: Option<String>,
    /// Keys of the configuration, else of the environment (`OSS_*`).
    pub keys: Option<super::AwsKeys>,
    /// Bytes per part; `None` = the default.
    pub part_size_bytes: Option<u64>,
    /// Parts in flight; `None` = the default.
    pub concurrency: Option<usize>,
}

/// Bucket, and path without the quirk of the empty one.
fn bucket_and_path(raw: &ReplicaKeys, backend: &str) -> Result<(String, String, String)> {
    let url = parsed_url(raw)?;
    let (user, host, path) = match &url {
        Some(url) => (url.user.as_str(), url.host.as_str(), url.object_path()),
        None => ("", "", raw.path.clone()),
    };
    let bucket = first([&raw.settings.bucket, host]);
    if bucket.is_empty() {
        return Err(Error::invalid(format!("bucket required for {backend} replica")));
    }
    let path = if path == "." { String::new() } else { path };
    Ok((user.to_owned(), bucket, path))
}

pub(super) fn gs(raw: &ReplicaKeys, around: Surroundings<'_>) -> Result<GsSettings> {
    let (_, bucket, path) = bucket_and_path(raw, "gs")?;
    let emulator = around.env.get_nonempty("STORAGE_EMULATOR_HOST").map(str::to_owned);
    // Of the URL alone: a key `endpoint`, which replicas take from the top level, has no effect on this type in 0.5.17,
    // and may be meant for others.
    let endpoint = parsed_url(raw)?.and_then(|url| url.query("endpoint")).map(super::s3::with_scheme);
    Ok(GsSettings { emulator, endpoint, bucket, path })
}

pub(super) fn abs(raw: &ReplicaKeys, around: Surroundings<'_>) -> Result<AbsSettings> {
    let (user, bucket, path) = bucket_and_path(raw, "abs")?;
    let keys = &raw.settings;
    let mut account = given(&first([&keys.account_name, &user]));
    let mut endpoint = given(&keys.endpoint);
    let from_env = |name: &str| Secret::new(around.env.get(name).unwrap_or_default());
    let mut sas = first_secret([keys.sas_token.clone(), from_env("LITESTREAM_AZURE_SAS_TOKEN")]);
    let mut key = first_secret([keys.account_key.clone(), from_env("LITESTREAM_AZURE_ACCOUNT_KEY")]);
    if sas.is_none() && key.is_none() {
        // Litestream does not read it. It is asked last, and only for the account that is meant, so that it cannot
        // change what works without it.
        let found =
            ConnectionString::parse(around.env.get_nonempty("AZURE_STORAGE_CONNECTION_STRING").unwrap_or_default());
        if account.is_none() || account == found.account {
            (sas, key) = (found.sas, found.key);
            if sas.is_some() || key.is_some() {
                account = account.or(found.account);
                endpoint = endpoint.or(found.endpoint);
            }
        }
    }
    let text = |name: &str| around.env.get_nonempty(name).map(str::to_owned);
    let auth = match (sas, key) {
        (Some(sas), _) => AbsAuth::SasToken(Secret::new(sas.expose().trim_start_matches('?'))),
        (None, Some(key)) if account.is_some() => AbsAuth::AccountKey(key),
        _ => AbsAuth::Platform(AzureLogin {
            tenant: text("AZURE_TENANT_ID"),
            client: text("AZURE_CLIENT_ID"),
            secret: around.env.get_nonempty("AZURE_CLIENT_SECRET").map(Secret::new),
            certificate: text("AZURE_CLIENT_CERTIFICATE_PATH").is_some(),
        }),
    };
    Ok(AbsSettings { account, endpoint, bucket, path, auth })
}

pub(super) fn oss(raw: &ReplicaKeys, around: Surroundings<'_>) -> Result<OssSettings> {
    let keys = &raw.settings;
    let (host, region, path) = match parsed_url(raw)? {
        Some(url) => {
            let (bucket, region) = oss_host(&url.host);
            (bucket, region, url.object_path())
        }
        None => (String::new(), None, raw.path.clone()),
    };
    let bucket = first([&keys.bucket, &host]);
    if bucket.is_empty() {
        return Err(Error::invalid("bucket required for oss replica"));
    }
    let secret = |name: &str| around.env.get_nonempty(name).map(Secret::new);
    let from_env = || {
        Some(super::AwsKeys {
            access_key_id: secret("OSS_ACCESS_KEY_ID")?,
            secret_access_key: secret("OSS_ACCESS_KEY_SECRET")?,
            session_token: secret("OSS_SESSION_TOKEN"),
        })
    };
    let of_file = !keys.access_key_id.is_empty() && !keys.secret_access_key.is_empty();
    let of_file = of_file.then(|| super::AwsKeys {
        access_key_id: keys.access_key_id.clone(),
        secret_access_key: keys.secret_access_key.clone(),
        session_token: None,
    });
    Ok(OssSettings {
        bucket,
        path,
        region: given(&keys.region).or(region),
        endpoint: given(&keys.endpoint),
        keys: of_file.or_else(from_env),
        part_size_bytes: keys.part_size.map(|size| size.0).filter(|n| *n > 0),
        concurrency: count(keys.concurrency),
    })
}

/// `<bucket>.oss-<region>[-internal].aliyuncs.com`; any other host is the bucket.
fn oss_host(host: &str) -> (String, Option<String>) {
    let Some(rest) = host.strip_suffix(".aliyuncs.com") else { return (host.to_owned(), None) };
    let (bucket, service) = rest.rsplit_once('.').unwrap_or(("", rest));
    match service.strip_prefix("oss-") {
        Some(region) => (bucket.to_owned(), given(region.strip_suffix("-internal").unwrap_or(region))),
        None => (host.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_names_account_key_and_endpoint() {
        let parsed = ConnectionString::parse(
            "DefaultEndpointsProtocol=https;AccountName=acct;AccountKey=YWJj==;EndpointSuffix=core.chinacloudapi.cn;",
        );
        assert_eq!(parsed.account.as_deref(), Some("acct"));
        assert_eq!(parsed.key.unwrap().expose(), "YWJj==");
        assert_eq!(parsed.endpoint.as_deref(), Some("https://acct.blob.core.chinacloudapi.cn"));
        let sas = ConnectionString::parse("BlobEndpoint=http://127.0.0.1:1/acct/;SharedAccessSignature=sv=1&sig=a%3D");
        assert_eq!(sas.endpoint.as_deref(), Some("http://127.0.0.1:1/acct"));
        assert_eq!(sas.sas.unwrap().expose(), "sv=1&sig=a%3D");
    }

    #[test]
    fn oss_hosts_hold_bucket_and_region() {
        for (host, bucket, region) in [
            ("bkt.oss-cn-shanghai.aliyuncs.com", "bkt", Some("cn-shanghai")),
            ("bkt.oss-cn-shanghai-internal.aliyuncs.com", "bkt", Some("cn-shanghai")),
            ("bkt", "bkt", None),
            ("oss-cn-hangzhou.aliyuncs.com", "", Some("cn-hangzhou")),
            ("bkt.other.aliyuncs.com", "bkt.other.aliyuncs.com", None),
        ] {
            assert_eq!(oss_host(host), (bucket.to_owned(), region.map(str::to_owned)), "{host}");
        }
    }
}
