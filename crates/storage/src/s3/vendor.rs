//! Whose S3 this is, and what that changes: one table (`spec: backends` §3.3), one pure function.

use crate::settings::{PathStyle, S3Settings};

/// Who answers at an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vendor {
    /// Amazon itself: no endpoint was given.
    Aws,
    Tigris,
    Hetzner,
    DigitalOcean,
    Backblaze,
    Filebase,
    Scaleway,
    CloudflareR2,
    Supabase,
    /// An endpoint with a port: MinIO, Ceph, Garage and whatever else people run themselves.
    SelfHosted,
    /// Google Cloud Storage through its S3 interface.
    Google,
    /// Wasabi, Linode, Vultr, Oracle, Exoscale and all others: nothing special is known.
    Other,
}

/// How the test of a row looks at the host.
enum Test {
    Is(&'static [&'static str]),
    EndsWith(&'static str),
}

const HOSTS: &[(Vendor, Test)] = &[
    (Vendor::Tigris, Test::Is(&["fly.storage.tigris.dev", "t3.storage.dev"])),
    (Vendor::Hetzner, Test::EndsWith(".your-objectstorage.com")),
    (Vendor::DigitalOcean, Test::EndsWith(".digitaloceanspaces.com")),
    (Vendor::Backblaze, Test::EndsWith(".backblazeb2.com")),
    (Vendor::Filebase, Test::Is(&["s3.filebase.com"])),
    (Vendor::Scaleway, Test::EndsWith(".scw.cloud")),
    (Vendor::CloudflareR2, Test::EndsWith(".r2.cloudflarestorage.com")),
    (Vendor::Supabase, Test::EndsWith(".supabase.co")),
];

/// A port makes an endpoint self-hosted unless one of these is in it.
const NEVER_SELF_HOSTED: [&str; 9] = [
    ".amazonaws.com",
    ".digitaloceanspaces.com",
    ".backblazeb2.com",
    ".filebase.com",
    ".scw.cloud",
    ".r2.cloudflarestorage.com",
    "tigris.dev",
    "t3.storage.dev",
    ".supabase.co",
];

impl Vendor {
    /// Looks at the resolved endpoint only.
    pub(super) fn of(endpoint: Option<&str>) -> Self {
        let Some(endpoint) = endpoint else { return Self::Aws };
        let endpoint = endpoint.to_ascii_lowercase();
        let schemeless = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
        // Without a scheme the reference looks at the whole text, path included.
        let host = match schemeless {
            Some(rest) => rest.split(['/', '?', '#']).next().unwrap_or(rest),
            None => endpoint.as_str(),
        };
        if host.contains('@') {
            return Self::Other;
        }
        let known = HOSTS.iter().find(|(_, test)| match test {
            Test::Is(names) => names.contains(&host),
            Test::EndsWith(suffix) => host.ends_with(suffix),
        });
        if let Some((vendor, _)) = known {
            return *vendor;
        }
        if is_google(host) {
            return Self::Google;
        }
        let rest = schemeless.unwrap_or(&endpoint);
        if rest.contains(':') && !NEVER_SELF_HOSTED.iter().any(|name| rest.contains(name)) {
            return Self::SelfHosted;
        }
        Self::Other
    }

    /// Needs the bucket in the path unless the configuration's key says otherwise.
    fn needs_path_style(self) -> bool {
        matches!(self, Self::Backblaze | Self::Filebase | Self::Supabase | Self::SelfHosted)
    }
}

/// `storage.googleapis.com`, `storage-download.googleapis.com`, `bkt.storage.googleapis.com` is not one.
fn is_google(host: &str) -> bool {
    let host = host.split(':').next().unwrap_or(host).trim_end_matches('.');
    if !host.ends_with("googleapis.com") {
        return false;
    }
    let labels: Vec<&str> = host.split('.').collect();
    let storage = |label: Option<&&str>| label.is_some_and(|l| l.split('-').any(|part| part == "storage"));
    storage(labels.first()) && (labels.len() <= 3 || !storage(labels.get(1)))
}

/// What follows from settings and vendor together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Habits {
    pub(super) vendor: Vendor,
    /// With a scheme; `None` = the rules of AWS.
    pub(super) endpoint: Option<String>,
    /// `None` must be looked up.
    pub(super) region: Option<String>,
    pub(super) path_style: bool,
    pub(super) sign_payload: bool,
    /// `Content-MD5` with batch deletes.
    pub(super) content_md5: bool,
    /// Parts of one upload in flight.
    pub(super) concurrency: usize,
    pub(super) part_bytes: u64,
    /// `X-Tigris-Consistent` with every request: without it a listing may be old.
    pub(super) tigris_consistent: bool,
    /// Parts of one upload may differ in size.
    pub(super) uneven_parts: bool,
}

/// Without a scheme it means https. The SDK puts the bucket right behind a path that ends without a slash.
fn with_scheme(endpoint: &str) -> String {
    let mut url = match endpoint.contains("://") {
        true => endpoint.to_owned(),
        false => format!("https://{endpoint}"),
    };
    let has_path = url.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
    if has_path && !url.ends_with('/') {
        url.push('/');
    }
    url
}

/// Parts of one upload in flight, if nothing is said.
const CONCURRENCY: usize = 5;
/// R2 slows clients down that do more.
const CONCURRENCY_R2: usize = 2;
/// Size of a part, if nothing is said; also the smallest the protocol allows.
pub(super) const PART_BYTES: u64 = 5 * 1024 * 1024;

impl Habits {
    /// Explicit settings win over the vendor's habits.
    pub(super) fn of(settings: &S3Settings) -> Self {
        let vendor = Vendor::of(settings.endpoint.as_deref());
        let default_concurrency = if vendor == Vendor::CloudflareR2 { CONCURRENCY_R2 } else { CONCURRENCY };
        let endpoint = settings.endpoint.as_deref().map(with_scheme);
        Self {
            vendor,
            region: match (&settings.region, &endpoint) {
                (None, Some(_)) => Some("us-east-1".to_owned()),
                (region, _) => region.clone(),
            },
            endpoint,
            path_style: match settings.path_style {
                PathStyle::Set(style) => style,
                PathStyle::Default(style) => style || vendor.needs_path_style(),
            },
            sign_payload: settings.sign_payload.unwrap_or(true),
            content_md5: settings.require_content_md5.unwrap_or(vendor != Vendor::Tigris),
            concurrency: settings.concurrency.unwrap_or(default_concurrency),
            part_bytes: settings.part_size_bytes.unwrap_or(PART_BYTES),
            tigris_consistent: vendor == Vendor::Tigris,
            uneven_parts: vendor != Vendor::CloudflareR2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_tell_their_vendor() {
        for (endpoint, want) in [
            ("fly.storage.tigris.dev", Vendor::Tigris),
            ("https://T3.storage.dev/", Vendor::Tigris),
            ("https://fsn1.your-objectstorage.com", Vendor::Hetzner),
            ("https://nyc3.digitaloceanspaces.com", Vendor::DigitalOcean),
            ("s3.us-west-000.backblazeb2.com", Vendor::Backblaze),
            ("s3.filebase.com", Vendor::Filebase),
            ("s3.nl-ams.scw.cloud", Vendor::Scaleway),
            ("https://acc.r2.cloudflarestorage.com", Vendor::CloudflareR2),
            ("https://acc.r2.cloudflarestorage.com:443", Vendor::Other),
            ("https://abc.supabase.co/storage/v1/s3", Vendor::Supabase),
            ("abc.supabase.co/storage/v1/s3", Vendor::Other),
            ("localhost:9000", Vendor::SelfHosted),
            ("http://192.168.1.20:9000", Vendor::SelfHosted),
            ("https://user@minio:9000", Vendor::Other),
            ("https://storage.googleapis.com", Vendor::Google),
            ("storage.googleapis.com.", Vendor::Google),
            ("https://storage-download.googleapis.com:443", Vendor::Google),
            ("https://bkt.storage.googleapis.com", Vendor::Other),
            ("s3.eu-central-1.wasabisys.com", Vendor::Other),
            ("objects.example.net", Vendor::Other),
        ] {
            assert_eq!(Vendor::of(Some(endpoint)), want, "{endpoint}");
        }
        assert_eq!(Vendor::of(None), Vendor::Aws);
    }
}
