//! Object stores besides S3: Google Cloud Storage, Azure Blob Storage, Alibaba Cloud OSS
//! (`spec: backends` §5–7).

use super::super::Surroundings;
use super::super::raw::{RawReplica, Secret};
use super::{count, first, first_secret, given, parsed_url};
use crate::error::{Error, Result};

/// A Google Cloud Storage replica. Credentials are the platform's own.
#[derive(Debug, Clone)]
pub struct GsSettings {
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
    Platform,
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
        if let AbsAuth::AccountKey(key) = &self.auth
            && let Err(why) = super::s3::decode_base64(key.expose())
        {
            return Err(Error::invalid(format!("abs: cannot create shared key credential: decode account key: {why}")));
        }
        Ok(())
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
fn bucket_and_path(raw: &RawReplica, backend: &str) -> Result<(String, String, String)> {
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

pub(super) fn gs(raw: &RawReplica) -> Result<GsSettings> {
    let (_, bucket, path) = bucket_and_path(raw, "gs")?;
    Ok(GsSettings { bucket, path })
}

pub(super) fn abs(raw: &RawReplica, around: Surroundings<'_>) -> Result<AbsSettings> {
    let (user, bucket, path) = bucket_and_path(raw, "abs")?;
    let keys = &raw.settings;
    let account = given(&first([&keys.account_name, &user]));
    let from_env = |name: &str| Secret::new(around.env.get(name).unwrap_or_default());
    let sas = first_secret([keys.sas_token.clone(), from_env("LITESTREAM_AZURE_SAS_TOKEN")]);
    let key = first_secret([keys.account_key.clone(), from_env("LITESTREAM_AZURE_ACCOUNT_KEY")]);
    let auth = match (sas, key) {
        (Some(sas), _) => AbsAuth::SasToken(Secret::new(sas.expose().trim_start_matches('?'))),
        (None, Some(key)) if account.is_some() => AbsAuth::AccountKey(key),
        _ => AbsAuth::Platform,
    };
    Ok(AbsSettings { account, endpoint: given(&keys.endpoint), bucket, path, auth })
}

pub(super) fn oss(raw: &RawReplica, around: Surroundings<'_>) -> Result<OssSettings> {
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
