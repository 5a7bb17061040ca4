//! S3: what keys, URL and environment say together (`spec: config` §8.2, `spec: backends` §3.1–3.6).
//! What follows from the provider behind an endpoint is left open here and decided by the client.

use std::fmt;
use std::path::PathBuf;

use super::url::Url;
use super::{ReplicaKeys, Secret, SharedKeys, Surroundings, count, given, parsed_url, path};
use crate::error::{Error, ErrorKind, Result};

/// An S3 replica.
#[derive(Debug, Clone)]
pub struct S3Settings {
    /// Name of the bucket, or the ARN of an access point.
    pub bucket: String,
    /// Prefix of all keys, used verbatim: it may be empty, `.`, or begin with a slash.
    pub path: String,
    /// Region; `None` = `us-east-1` with an endpoint, looked up without.
    pub region: Option<String>,
    /// Endpoint as written. Without a scheme it means https. `None` = AWS.
    pub endpoint: Option<String>,
    /// Keys of the configuration, else of the environment; `None` = what else the platform offers.
    pub keys: Option<AwsKeys>,
    /// Whether the bucket is part of the path.
    pub path_style: PathStyle,
    /// Sign the content of uploads; `None` = as the provider likes it.
    pub sign_payload: Option<bool>,
    /// Sign the `Accept-Encoding` header; likewise.
    pub sign_accept_encoding: Option<bool>,
    /// Send `Content-MD5` with batch deletes; likewise.
    pub require_content_md5: Option<bool>,
    /// PEM file with further certificate authorities (`AWS_CA_BUNDLE`).
    pub ca_bundle: Option<PathBuf>,
    /// Accept any certificate.
    pub skip_verify: bool,
    /// Storage class of new objects.
    pub storage_class: Option<String>,
    /// Bytes per part of a multipart upload; `None` = the default. May be too small for the service.
    pub part_size_bytes: Option<u64>,
    /// Parts in flight; `None` = as the provider likes it.
    pub concurrency: Option<usize>,
    /// Server-side encryption as asked for; [`S3Settings::encryption`] checks it.
    pub sse: SseSettings,
}

/// `sse-*` as written, with the key file read.
#[derive(Debug, Clone, Default)]
pub struct SseSettings {
    customer_algorithm: Option<String>,
    customer_key: Secret,
    kms_key_id: Option<String>,
}

/// Static credentials.
#[derive(Debug, Clone)]
pub struct AwsKeys {
    /// `access-key-id`
    pub access_key_id: Secret,
    /// `secret-access-key`
    pub secret_access_key: Secret,
    /// Only from the environment: keys of the file never use its token.
    pub session_token: Option<Secret>,
}

/// Where the bucket's name goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathStyle {
    /// Said by the `force-path-style` key: the provider's habits do not matter.
    Set(bool),
    /// Follows from URL and endpoint; a provider that needs path style gets it all the same.
    Default(bool),
}

/// Server-side encryption, checked.
#[derive(Debug, Clone)]
pub enum Encryption {
    /// Nothing is said.
    None,
    /// A key in the key service.
    Kms(String),
    /// Our own key goes with each request.
    CustomerKey(CustomerKey),
}

/// `sse-customer-*`: decoded and checked.
#[derive(Clone)]
pub struct CustomerKey(Vec<u8>);

impl CustomerKey {
    /// The 32 bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for CustomerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"***\"")
    }
}

/// What the host of a URL stands for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Host {
    bucket: String,
    region: Option<String>,
    endpoint: Option<String>,
    path_style: bool,
}

pub(super) fn build(raw: &ReplicaKeys, around: Surroundings<'_>) -> Result<S3Settings> {
    let keys = &raw.settings;
    let (host, path, query) = match access_point(&raw.url)? {
        Some((host, path, url)) => (host, path, Some(url)),
        None => match parsed_url(raw)? {
            Some(url) => (host_of(&url.host), url.object_path(), Some(url)),
            None => (Host::default(), raw.path.clone(), None),
        },
    };
    let parameters = query.as_ref().map(Parameters::read).transpose()?.unwrap_or_default();
    let bucket = given(&keys.bucket).unwrap_or(host.bucket.clone());
    if bucket.is_empty() {
        return Err(Error::invalid("bucket required for s3 replica"));
    }
    let path_style = path_style(keys, &parameters, query.is_some().then_some(host.path_style));
    Ok(S3Settings {
        bucket,
        path,
        region: given(&keys.region).or(parameters.region).or(host.region),
        endpoint: given(&keys.endpoint).or(parameters.endpoint).or(host.endpoint),
        keys: aws_keys(keys, around),
        path_style,
        sign_payload: keys.sign_payload.or(parameters.sign_payload),
        sign_accept_encoding: keys.sign_accept_encoding.or(parameters.sign_accept_encoding),
        require_content_md5: keys.require_content_md5.or(parameters.require_content_md5),
        ca_bundle: around.env.get_nonempty("AWS_CA_BUNDLE").map(PathBuf::from),
        skip_verify: parameters.skip_verify.unwrap_or(keys.skip_verify),
        storage_class: given(&keys.storage_class).or(parameters.storage_class),
        part_size_bytes: keys.part_size.map(|size| size.0).filter(|n| *n > 0).or(parameters.part_size),
        concurrency: count(keys.concurrency).or_else(|| parameters.concurrency.and_then(|n| usize::try_from(n).ok())),
        sse: SseSettings {
            customer_algorithm: given(&keys.sse_customer_algorithm),
            customer_key: match keys.sse_customer_key_path.as_str() {
                "" => keys.sse_customer_key.clone(),
                file => read_key(file, around)?,
            },
            kms_key_id: given(&keys.sse_kms_key_id),
        },
    })
}

/// Both keys of the file, else both of the environment. One half alone is as good as none.
fn aws_keys(keys: &SharedKeys, around: Surroundings<'_>) -> Option<AwsKeys> {
    if !keys.access_key_id.is_empty() && !keys.secret_access_key.is_empty() {
        return Some(AwsKeys {
            access_key_id: keys.access_key_id.clone(),
            secret_access_key: keys.secret_access_key.clone(),
            session_token: None,
        });
    }
    let secret = |name: &str| around.env.get_nonempty(name).map(Secret::new);
    // The second name of each is the one of the first SDKs for Java.
    let either = |name, old| secret(name).or_else(|| secret(old));
    Some(AwsKeys {
        access_key_id: either("AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY")?,
        secret_access_key: either("AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY")?,
        session_token: secret("AWS_SESSION_TOKEN"),
    })
}

/// The precedence is not a plain one (`spec: backends` §3.4). `host` is what the URL's host says.
fn path_style(keys: &SharedKeys, query: &Parameters, host: Option<bool>) -> PathStyle {
    let mut style = keys.force_path_style.unwrap_or(!keys.endpoint.is_empty());
    if let Some(mut from_url) = host {
        if query.endpoint.is_some() && query.force_path_style != Some(false) {
            from_url = true;
        }
        if let Some(said) = query.force_path_style {
            from_url = said;
        }
        style = style || from_url;
    }
    if keys.force_path_style.is_some() { PathStyle::Set(style) } else { PathStyle::Default(style) }
}

/// `s3://arn:…:accesspoint/<name>[/<path>][?query]`, which is not a URL a parser would take.
fn access_point(url: &str) -> Result<Option<(Host, String, Url)>> {
    let Some(arn) = url.get(..9).filter(|s| s.eq_ignore_ascii_case("s3://arn:")).map(|_| &url[5..]) else {
        return Ok(None);
    };
    let (arn, query) = arn.split_once('?').unwrap_or((arn, ""));
    let invalid = || Error::invalid(format!("invalid s3 access point arn: {arn}"));
    const MARK: &str = ":accesspoint/";
    // Lower case in ASCII only keeps all offsets.
    let name_at = arn.to_ascii_lowercase().find(MARK).ok_or_else(invalid)? + MARK.len();
    let name_len = arn[name_at..].find('/').unwrap_or(arn.len() - name_at);
    if name_len == 0 {
        return Err(invalid());
    }
    let bucket = arn[..name_at + name_len].to_owned();
    let region = bucket.split(':').nth(3).and_then(given);
    // The rest is read by the ordinary rules.
    let rest = Url::parse(&format!("s3://x{}?{query}", &arn[name_at + name_len..]))?;
    let path = match rest.object_path() {
        path if path == "." => String::new(),
        path => path,
    };
    Ok(Some((Host { bucket, region, ..Host::default() }, path, rest)))
}

/// The table of `spec: backends` §3.1; the first match decides.
fn host_of(host: &str) -> Host {
    let bucket = |b: &str| b.to_owned();
    if host.contains(':') && !host.contains(".com") {
        return match host.split_once('.') {
            Some((name, rest)) => Host {
                bucket: bucket(name),
                region: Some("us-east-1".to_owned()),
                endpoint: Some(format!("http://{rest}")),
                path_style: true,
            },
            None => Host::default(),
        };
    }
    if let Some(name) = host.strip_suffix(".s3.amazonaws.com").filter(|b| !b.is_empty()) {
        return Host { bucket: bucket(name), ..Host::default() };
    }
    if let Some(name) = host.strip_suffix(".s3.filebase.com").filter(|b| !b.is_empty()) {
        return Host { bucket: bucket(name), endpoint: Some("s3.filebase.com".to_owned()), ..Host::default() };
    }
    // `<bucket><between><region><suffix>`
    let regional = |between: &str, suffix: &str| {
        let (rest, region) = host.strip_suffix(suffix)?.rsplit_once('.')?;
        let name = rest.strip_suffix(between).filter(|b| !b.is_empty() && !region.is_empty())?;
        Some((name.to_owned(), region.to_owned()))
    };
    if let Some((bucket, region)) = regional(".s3", ".amazonaws.com") {
        return Host { bucket, region: Some(region), ..Host::default() };
    }
    if let Some((bucket, region)) = regional("", ".digitaloceanspaces.com") {
        let endpoint = Some(format!("https://{region}.digitaloceanspaces.com"));
        return Host { bucket, region: Some(region), endpoint, path_style: false };
    }
    if let Some((bucket, region)) = regional(".s3", ".backblazeb2.com") {
        let endpoint = Some(format!("https://s3.{region}.backblazeb2.com"));
        return Host { bucket, region: Some(region), endpoint, path_style: true };
    }
    if let Some((bucket, region)) = regional(".s3", ".scw.cloud") {
        let endpoint = Some(format!("s3.{region}.scw.cloud"));
        return Host { bucket, region: Some(region), endpoint, path_style: false };
    }
    Host { bucket: bucket(host), ..Host::default() }
}

/// `spec: backends` §3.2, as read from configuration files and command lines.
#[derive(Debug, Default)]
struct Parameters {
    endpoint: Option<String>,
    region: Option<String>,
    force_path_style: Option<bool>,
    skip_verify: Option<bool>,
    sign_payload: Option<bool>,
    sign_accept_encoding: Option<bool>,
    require_content_md5: Option<bool>,
    storage_class: Option<String>,
    part_size: Option<u64>,
    concurrency: Option<u64>,
}

impl Parameters {
    fn read(url: &Url) -> Result<Self> {
        let either = |camel: &str, hyphen: &str| url.query(camel).or_else(|| url.query(hyphen));
        let flexible = |camel: &str, hyphen: &str| {
            either(camel, hyphen).map(|v| matches!(v.to_ascii_lowercase().as_str(), "true" | "1" | "t" | "yes"))
        };
        let exact = |name: &str| url.query(name).map(|v| v == "true");
        let number = |name: &str| match url.query(name) {
            None => Ok(None),
            Some(text) => match text.parse::<u64>() {
                Ok(n) if n > 0 && i64::try_from(n).is_ok() => Ok(Some(n)),
                _ => Err(Error::invalid(format!(
                    "invalid value for query parameter {name:?}: {text:?} (must be a positive integer)"
                ))),
            },
        };
        Ok(Self {
            endpoint: url.query("endpoint").map(with_scheme),
            region: url.query("region"),
            force_path_style: exact("forcePathStyle"),
            skip_verify: exact("skipVerify"),
            sign_payload: flexible("signPayload", "sign-payload"),
            sign_accept_encoding: flexible("signAcceptEncoding", "sign-accept-encoding"),
            require_content_md5: flexible("requireContentMD5", "require-content-md5"),
            storage_class: either("storageClass", "storage-class"),
            part_size: match number("partSize")? {
                None => number("part-size")?,
                some => some,
            },
            concurrency: number("concurrency")?,
        })
    }
}

/// Names of parameters we know, for warnings about others.
pub const PARAMETERS: [&str; 15] = [
    "endpoint",
    "region",
    "forcePathStyle",
    "skipVerify",
    "signPayload",
    "sign-payload",
    "signAcceptEncoding",
    "sign-accept-encoding",
    "requireContentMD5",
    "require-content-md5",
    "storageClass",
    "storage-class",
    "partSize",
    "part-size",
    "concurrency",
];

/// In a query a bare host means http where it is local, https elsewhere.
pub(super) fn with_scheme(endpoint: String) -> String {
    if endpoint.starts_with("http://") || endpoint.starts_with("https://") {
        return endpoint;
    }
    format!("{}{endpoint}", if is_local(&endpoint) { "http://" } else { "https://" })
}

/// Whether a host (with or without port) is in a private network.
fn is_local(host: &str) -> bool {
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let prefixes = ["192.168.", "10.", "172.16.", "172.17.", "172.18.", "172.19.", "172.2", "172.30.", "172.31."];
    matches!(host, "localhost" | "127.0.0.1")
        || prefixes.iter().any(|p| host.starts_with(p))
        || host.ends_with(".local")
        || host.ends_with(".localhost")
}

fn read_key(file: &str, around: Surroundings<'_>) -> Result<Secret> {
    let home = around.env.get("HOME").unwrap_or_default();
    let at = file.strip_prefix('~').map_or_else(|| file.to_owned(), |rest| format!("{home}{rest}"));
    let text = path::read_text(around.fs, std::path::Path::new(&at)).map_err(|err| {
        Error::new(ErrorKind::Invalid, format!("cannot read sse-customer-key-path {at:?}")).caused_by(err)
    })?;
    Ok(Secret::new(text.trim()))
}

impl S3Settings {
    /// What `sse-*` ask for. Checked when a client is made, as in the reference, so that commands which
    /// need none do not stumble over it.
    ///
    /// # Errors
    /// The texts of `spec: config` §9 C.
    pub fn encryption(&self) -> Result<Encryption> {
        let sse = &self.sse;
        let wrong = |text: String| Err(Error::invalid(format!("s3: {text}")));
        if sse.customer_key.is_empty() {
            return Ok(sse.kms_key_id.clone().map_or(Encryption::None, Encryption::Kms));
        }
        if sse.kms_key_id.is_some() {
            return wrong(
                "cannot use both sse-customer-key and sse-kms-key-id; they are mutually exclusive".to_owned(),
            );
        }
        if let Some(algorithm) = sse.customer_algorithm.as_deref().filter(|a| *a != "AES256") {
            return wrong(format!("sse-customer-algorithm must be AES256, got {algorithm:?}"));
        }
        let key = match decode_base64(sse.customer_key.expose()) {
            Ok(key) => key,
            Err(why) => return wrong(format!("sse-customer-key must be valid base64: {why}")),
        };
        if key.len() != 32 {
            return wrong(format!("sse-customer-key must be 256-bit (32 bytes) when decoded, got {} bytes", key.len()));
        }
        let plain = self.endpoint.as_deref().and_then(|e| e.strip_prefix("http://"));
        if plain.is_some_and(|host| !is_local(host.split('/').next().unwrap_or(host))) {
            return wrong(
                "sse-customer-key requires HTTPS endpoint (HTTP only allowed for localhost/private networks)"
                    .to_owned(),
            );
        }
        Ok(Encryption::CustomerKey(CustomerKey(key)))
    }
}

/// Standard base64; says what is wrong without showing it.
pub(super) fn decode_base64(text: &str) -> std::result::Result<Vec<u8>, String> {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    STANDARD.decode(text).map_err(|err| {
        let at = match err {
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => text.len() & !3,
        };
        format!("illegal base64 data at input byte {at}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(bucket: &str, region: &str, endpoint: &str, path_style: bool) -> Host {
        Host { bucket: bucket.to_owned(), region: given(region), endpoint: given(endpoint), path_style }
    }

    #[test]
    fn credentials_have_two_names_each_in_the_environment() {
        let world = crate::sys::World::system();
        let keys_of = |vars: &[(&str, &str)]| {
            let vars = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let env = crate::settings::Environment::new(vars, PathBuf::from("/"));
            let around = Surroundings { env: &env, fs: world.fs.as_ref() };
            let keys = aws_keys(&SharedKeys::default(), around)?;
            Some((keys.access_key_id.expose().to_owned(), keys.secret_access_key.expose().to_owned()))
        };
        let pair = |id: &str, secret: &str| Some((id.to_owned(), secret.to_owned()));
        assert_eq!(keys_of(&[("AWS_ACCESS_KEY", "a"), ("AWS_SECRET_KEY", "b")]), pair("a", "b"));
        assert_eq!(keys_of(&[("AWS_ACCESS_KEY_ID", "c"), ("AWS_SECRET_KEY", "b")]), pair("c", "b"));
        let all = [
            ("AWS_ACCESS_KEY_ID", "c"),
            ("AWS_ACCESS_KEY", "a"),
            ("AWS_SECRET_ACCESS_KEY", ""),
            ("AWS_SECRET_KEY", "b"),
        ];
        assert_eq!(keys_of(&all), pair("c", "b"));
        assert_eq!(keys_of(&[("AWS_ACCESS_KEY", "a")]), None);
    }

    #[test]
    fn hosts_of_providers_are_taken_apart() {
        for (text, want) in [
            ("bkt", host("bkt", "", "", false)),
            ("bkt.192.168.1.5:9000", host("bkt", "us-east-1", "http://192.168.1.5:9000", true)),
            ("localhost:9000", Host::default()),
            ("bkt.minio.example.com:9000", host("bkt.minio.example.com:9000", "", "", false)),
            ("my.dotted.bkt.s3.us-west-2.amazonaws.com", host("my.dotted.bkt", "us-west-2", "", false)),
            ("bkt.s3.amazonaws.com", host("bkt", "", "", false)),
            ("s3.us-east-1.amazonaws.com", host("s3.us-east-1.amazonaws.com", "", "", false)),
            ("bkt.nyc3.digitaloceanspaces.com", host("bkt", "nyc3", "https://nyc3.digitaloceanspaces.com", false)),
            (
                "bkt.s3.us-west-000.backblazeb2.com",
                host("bkt", "us-west-000", "https://s3.us-west-000.backblazeb2.com", true),
            ),
            ("bkt.s3.filebase.com", host("bkt", "", "s3.filebase.com", false)),
            ("bkt.s3.nl-ams.scw.cloud", host("bkt", "nl-ams", "s3.nl-ams.scw.cloud", false)),
            ("bkt.s3.us-east-1.wasabisys.com", host("bkt.s3.us-east-1.wasabisys.com", "", "", false)),
        ] {
            assert_eq!(host_of(text), want, "{text}");
        }
    }

    #[test]
    fn local_hosts_are_told_by_name_and_prefix() {
        for local in ["localhost:9000", "127.0.0.1", "192.168.1.20:9000", "10.0.0.1", "172.25.0.1", "nas.local"] {
            assert!(is_local(local), "{local}");
        }
        for public in ["172.32.0.1", "objects.example.net", "localhost.example.com", "11.0.0.1"] {
            assert!(!is_local(public), "{public}");
        }
    }

    #[test]
    fn path_style_follows_the_table_of_the_reference() {
        let settings = |key: Option<bool>, endpoint: &str| SharedKeys {
            force_path_style: key,
            endpoint: endpoint.to_owned(),
            ..SharedKeys::default()
        };
        let query = |endpoint: &str, said: Option<bool>| Parameters {
            endpoint: given(endpoint),
            force_path_style: said,
            ..Parameters::default()
        };
        let none = Parameters::default;
        for (key, key_endpoint, query, host, want) in [
            (None, "", none(), None, PathStyle::Default(false)),
            (None, "http://x", none(), None, PathStyle::Default(true)),
            (Some(false), "http://x", none(), None, PathStyle::Set(false)),
            (Some(true), "", none(), None, PathStyle::Set(true)),
            (Some(false), "", query("http://x", None), Some(false), PathStyle::Set(true)),
            (Some(false), "", query("", Some(true)), Some(false), PathStyle::Set(true)),
            (None, "", query("http://x", Some(false)), Some(false), PathStyle::Default(false)),
            (None, "", query("http://x", None), Some(false), PathStyle::Default(true)),
            (None, "", none(), Some(true), PathStyle::Default(true)),
        ] {
            assert_eq!(path_style(&settings(key, key_endpoint), &query, host), want);
        }
    }

    #[test]
    fn access_points_keep_their_arn_as_bucket() {
        let (host, path, url) =
            access_point("S3://arn:aws:s3:us-east-2:1:accesspoint/my-ap/a/b?region=x").unwrap().unwrap();
        assert_eq!(host.bucket, "arn:aws:s3:us-east-2:1:accesspoint/my-ap");
        assert_eq!((host.region.as_deref(), path.as_str()), (Some("us-east-2"), "a/b"));
        assert_eq!(url.query("region").as_deref(), Some("x"));
        for bad in ["s3://arn:aws:s3:us-east-1:1:bucket/x", "s3://arn:aws:s3:us-east-1:1:accesspoint/"] {
            let want = format!("invalid s3 access point arn: {}", &bad[5..]);
            assert_eq!(access_point(bad).unwrap_err().to_string(), want);
        }
        assert!(access_point("s3://bkt").unwrap().is_none());
        assert!(access_point("é").unwrap().is_none());
    }
}
