//! Settings → SDK client: credentials, region, endpoint, and what a vendor wants in every request.

use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_credential_types::Credentials;
use aws_runtime::auth::PayloadSigningOverride;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::{
    AfterDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextMut,
};
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{
    AppName, ConfigBag, Intercept, Region, RequestChecksumCalculation, ResponseChecksumValidation, RuntimeComponents,
};
use aws_smithy_async::time::TimeSource;
use aws_smithy_runtime_api::client::http::SharedHttpClient;

use super::failure::{Asked, failure};
use super::http::{self, Trust};
use super::vendor::Habits;
use crate::error::Result;
use crate::requests::{Call, Operation, Requests};
use crate::settings::{AwsKeys, S3Settings};
use crate::sys::World;

/// Where a bucket's region is asked for, as in the reference.
const HOME: &str = "us-east-1";

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Makes a client. Makes requests only if the region must be looked up.
pub(super) async fn connect(
    settings: &S3Settings,
    habits: &Habits,
    requests: &Requests,
    http: Option<SharedHttpClient>,
) -> Result<Client> {
    let http = match http {
        Some(given) => given,
        None => http::client(&trust(settings))?,
    };
    let client = |region: String| {
        let (http, clock) = (http.clone(), SigningClock(requests.world().clone()));
        async move { client(settings, habits, &region, &http, clock).await }
    };
    match &habits.region {
        Some(region) => Ok(client(region.clone()).await),
        None => {
            let home = client(HOME.to_owned()).await;
            let region = look_up(&home, &settings.bucket, requests).await?;
            if region == HOME { Ok(home) } else { Ok(client(region).await) }
        }
    }
}

fn trust(settings: &S3Settings) -> Trust {
    match &settings.ca_bundle {
        _ if settings.skip_verify => Trust::Everybody,
        Some(file) => Trust::SystemAnd(file.clone()),
        None => Trust::System,
    }
}

async fn client(
    settings: &S3Settings,
    habits: &Habits,
    region: &str,
    http: &SharedHttpClient,
    clock: SigningClock,
) -> Client {
    let region = Region::new(region.to_owned());
    // Retries and deadlines are ours, around each request: see `replica::requests`.
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(region.clone())
        .http_client(http.clone())
        .time_source(clock)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    if let Ok(name) = AppName::new("litestream") {
        loader = loader.app_name(name);
    }
    if let Some(keys) = &settings.keys {
        loader = loader.credentials_provider(fixed(keys));
    }
    let shared = loader.load().await;
    // aws-chunked bodies are never sent to others than AWS: many do not understand them.
    let (calculate, validate) = match habits.endpoint {
        None => (RequestChecksumCalculation::WhenSupported, ResponseChecksumValidation::WhenSupported),
        Some(_) => (RequestChecksumCalculation::WhenRequired, ResponseChecksumValidation::WhenRequired),
    };
    let mut config = aws_sdk_s3::config::Builder::from(&shared)
        .region(region)
        .force_path_style(habits.path_style)
        .use_arn_region(true)
        .disable_s3_express_session_auth(habits.endpoint.is_some())
        .request_checksum_calculation(calculate)
        .response_checksum_validation(validate)
        .interceptor(EveryRequest { unsigned: !habits.sign_payload, tigris: habits.tigris_consistent });
    if let Some(endpoint) = &habits.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Client::from_conf(config.build())
}

fn fixed(keys: &AwsKeys) -> Credentials {
    Credentials::new(
        keys.access_key_id.expose(),
        keys.secret_access_key.expose(),
        keys.session_token.as_ref().map(|token| token.expose().to_owned()),
        None,
        "litestream",
    )
}

async fn look_up(client: &Client, bucket: &str, requests: &Requests) -> Result<String> {
    let target = format!("s3://{bucket}");
    let call = Call { operation: Operation::Get, kind: "s3", target: &target, objects: 0, bytes: 0 };
    let asked = Asked { api: "GetBucketLocation", doing: "cannot lookup bucket region", target: &target };
    let answer = requests
        .run(call, |_| async {
            let sent = client.get_bucket_location().bucket(bucket).send().await;
            sent.map_err(|e| failure(asked, e))
        })
        .await?;
    Ok(region_of(answer.location_constraint().map(|c| c.as_str())))
}

/// Two answers are from the time before regions had names.
fn region_of(answer: Option<&str>) -> String {
    match answer.unwrap_or_default() {
        "" | "US" => HOME,
        "EU" => "eu-west-1",
        other => other,
    }
    .to_owned()
}

/// The time requests are signed with.
#[derive(Debug)]
struct SigningClock(World);

impl TimeSource for SigningClock {
    fn now(&self) -> std::time::SystemTime {
        self.0.clock.now().to_system()
    }
}

/// What goes into every request before it is signed, and what every answer must be.
#[derive(Debug)]
struct EveryRequest {
    unsigned: bool,
    tigris: bool,
}

impl Intercept for EveryRequest {
    fn name(&self) -> &'static str {
        "litestream"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if self.unsigned {
            cfg.interceptor_state().store_put(PayloadSigningOverride::unsigned_payload());
        }
        if self.tigris {
            context.request_mut().headers_mut().insert("x-tigris-consistent", "true");
        }
        Ok(())
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let answer = context.response();
        // Streamed bodies are not here yet; whoever reads them knows their length.
        match answer.body().bytes() {
            Some(body) if answer.status().is_success() && !is_whole(body) => Err("the answer ends early".into()),
            _ => Ok(()),
        }
    }
}

/// Whether an XML document ends with the end of its root. The SDK does not ask: it takes half a listing, whose
/// length a proxy has "corrected", for a whole one.
fn is_whole(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body);
    let mut rest = text.trim();
    if !rest.starts_with('<') {
        // Not XML, or nothing: no promise is broken.
        return true;
    }
    while rest.starts_with("<?") || rest.starts_with("<!") {
        let Some((_, after)) = rest.split_once('>') else { return false };
        rest = after.trim_start();
    }
    let Some((root, after)) = rest.strip_prefix('<').and_then(|rest| rest.split_once('>')) else { return false };
    if root.ends_with('/') {
        return after.is_empty();
    }
    let name = root.split_ascii_whitespace().next().unwrap_or_default();
    rest.ends_with(&format!("</{name}>"))
}

/// How long the first byte of an answer may take; the body has its own bound.
pub(super) const BODY_IDLE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_that_ends_early_is_seen() {
        let whole = "<?xml version=\"1.0\"?>\n<!-- x -->\n<List xmlns=\"a>b\"><Key>List</Key><E/></List>\n";
        let whole = whole.replace("a>b", "ab");
        assert!(is_whole(whole.as_bytes()));
        for cut in 1..whole.len() - 1 {
            assert!(!is_whole(&whole.as_bytes()[..cut]), "{}", &whole[..cut]);
        }
        for body in ["", " ", "OK", "<LocationConstraint/>", "<a b=\"c\"/>", "<A></A>"] {
            assert!(is_whole(body.as_bytes()), "{body}");
        }
    }

    #[test]
    fn old_names_of_regions_are_understood() {
        assert_eq!(region_of(None), "us-east-1");
        assert_eq!(region_of(Some("")), "us-east-1");
        assert_eq!(region_of(Some("EU")), "eu-west-1");
        assert_eq!(region_of(Some("ap-southeast-2")), "ap-southeast-2");
    }
}
