//! Log records in the reference's shapes (`spec: control` §6), from `tracing` macros.
//!
//! How to write a record anywhere in our crates:
//!
//! * The message is the reference's, verbatim; attributes come in the order written:
//!   `info!(path = %path.display(), "initialized db")`.
//! * TXIDs, paths, errors and anything textual: `%value`. Integers and booleans: the plain value.
//!   Durations: [`duration`](super::duration)`(d)`, which text prints in Go form and JSON as nanoseconds.
//! * Names with dots are groups (`txid.min = %range.min()`): text prints them as they are, JSON nests
//!   them. Names that are Rust keywords or hold a dash are string literals: `"sync-interval" = …`.
//! * A record about a database carries `system=store db=<file name>` first. Either enter a span once
//!   per task, `error_span!("db", system = "store", db = %name)` (`.instrument(span)` on futures,
//!   `.in_scope` on blocking threads), or write the two fields in the macro. Attributes of enclosing
//!   spans are printed before the record's own, outermost first; a name the record sets itself is not
//!   repeated. Context spans are `error_span!` because a span below the level in force is switched
//!   off, and its attributes with it.
//!
//! Only records of our crates are printed: what libraries emit is theirs. A line is written whole
//! under one lock, and a closed or full output is not an error of the program: the line is lost.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use jiff::tz::TimeZone;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use super::format::{self, Attribute, Record, Shape, Value};
use super::zone;
use crate::sys::Clock;

/// How and where to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSettings {
    /// Lowest level printed.
    pub level: Level,
    /// Shape of a line.
    pub shape: Shape,
    /// Where lines go.
    pub stream: LogStream,
    /// Whether file and line of the statement are added.
    pub source: bool,
}

impl Default for LogSettings {
    /// What holds before any configuration is read.
    fn default() -> Self {
        Self { level: Level::INFO, shape: Shape::Text, stream: LogStream::Stdout, source: false }
    }
}

/// Where lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output, the default.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The level named by a setting, in any case. Unknown and empty mean INFO, as in the reference.
#[must_use]
pub fn parse_level(text: &str) -> Level {
    match text.to_ascii_lowercase().as_str() {
        "trace" => Level::TRACE,
        "debug" => Level::DEBUG,
        "warn" | "warning" => Level::WARN,
        "error" => Level::ERROR,
        _ => Level::INFO,
    }
}

/// Starts logging, or changes how it is done: a command starts with the defaults and changes them
/// once it has read its configuration. `tz` is the variable of that name; the first call decides.
pub fn init(settings: LogSettings, clock: Arc<dyn Clock>, tz: Option<&str>) {
    zone::decide(tz);
    static CURRENT: OnceLock<Arc<RwLock<LogSettings>>> = OnceLock::new();
    let mut first = false;
    let current = CURRENT.get_or_init(|| {
        first = true;
        Arc::new(RwLock::new(settings))
    });
    if first {
        let layer = LineLayer { settings: Arc::clone(current), clock, zone: zone::local_zone(), out: None };
        // Somebody else's subscriber (a test's) stays in place.
        let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer));
    } else {
        *current.write().unwrap_or_else(PoisonError::into_inner) = settings;
        tracing::callsite::rebuild_interest_cache();
    }
}

type Sink = Arc<std::sync::Mutex<Vec<u8>>>;

struct LineLayer {
    settings: Arc<RwLock<LogSettings>>,
    clock: Arc<dyn Clock>,
    zone: TimeZone,
    /// Collects lines instead of printing them, for tests.
    out: Option<Sink>,
}

impl LineLayer {
    fn settings(&self) -> LogSettings {
        *self.settings.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn wants(&self, meta: &Metadata<'_>) -> bool {
        is_ours(meta.target()) && *meta.level() <= self.settings().level
    }
}

/// Whether a record comes from the program, or from one of its crates: `litestream_<part>`.
fn is_ours(target: &str) -> bool {
    let name = target.split_once("::").map_or(target, |(name, _)| name);
    name == "litestream" || name.starts_with("litestream_")
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LineLayer {
    fn register_callsite(&self, meta: &'static Metadata<'static>) -> Interest {
        if self.wants(meta) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, meta: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.wants(meta)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::from_level(self.settings().level))
    }

    fn on_new_span(&self, attrs: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        if let Some(span) = ctx.span(id) {
            let mut collected = Collector::default();
            attrs.record(&mut collected);
            span.extensions_mut().insert(SpanAttributes(collected.attributes));
        }
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        let mut own = Collector::default();
        event.record(&mut own);
        let mut attributes: Vec<Attribute> = Vec::new();
        for span in ctx.event_scope(event).into_iter().flat_map(tracing_subscriber::registry::Scope::from_root) {
            if let Some(SpanAttributes(outer)) = span.extensions().get::<SpanAttributes>() {
                let fresh = |a: &&Attribute| own.attributes.iter().all(|o| o.name != a.name);
                attributes.extend(outer.iter().filter(fresh).cloned());
            }
        }
        attributes.append(&mut own.attributes);

        let settings = self.settings();
        let meta = event.metadata();
        let source = match (settings.source, meta.file(), meta.line()) {
            (true, Some(file), Some(line)) => Some((file, line)),
            _ => None,
        };
        let record = Record {
            time: self.clock.now(),
            zone: &self.zone,
            level: *meta.level(),
            source,
            message: &own.message,
            attributes: &attributes,
        };
        if let Some(sink) = &self.out {
            let line = format::line(&record, settings.shape, false);
            sink.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(line.as_bytes());
            return;
        }
        print(&record, settings);
    }
}

/// One write per line, under the stream's lock. A failed write loses the line.
fn print(record: &Record<'_>, settings: LogSettings) {
    fn put(mut out: impl Write + IsTerminal, record: &Record<'_>, shape: Shape) {
        let line = format::line(record, shape, shape == Shape::Pretty && out.is_terminal());
        let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    }
    match settings.stream {
        LogStream::Stdout => put(std::io::stdout().lock(), record, settings.shape),
        LogStream::Stderr => put(std::io::stderr().lock(), record, settings.shape),
    }
}

struct SpanAttributes(Vec<Attribute>);

#[derive(Default)]
struct Collector {
    message: String,
    attributes: Vec<Attribute>,
}

impl Collector {
    fn push(&mut self, field: &Field, value: Value) {
        if field.name() == "message" {
            self.message = value.text();
        } else {
            self.attributes.push(Attribute { name: field.name(), value });
        }
    }
}

impl Visit for Collector {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, Value::Text(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, Value::Text(value.to_owned()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.push(field, Value::Text(value.to_string()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, Value::Int(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, Value::Uint(value));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.push(field, Value::Duration(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, Value::Float(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, Value::Bool(value));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tracing::{debug, error_span, info, warn};

    use super::super::duration;
    use super::*;
    use crate::sys::ManualClock;
    use crate::types::Timestamp;

    fn captured(settings: LogSettings, write: impl FnOnce()) -> String {
        let sink = Sink::default();
        let layer = LineLayer {
            settings: Arc::new(RwLock::new(settings)),
            clock: Arc::new(ManualClock::starting_at(Timestamp::from_millis(1_500))),
            zone: TimeZone::UTC,
            out: Some(Arc::clone(&sink)),
        };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), write);
        let bytes = sink.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_record_of_a_database_starts_with_its_context() {
        let lines = captured(LogSettings::default(), || {
            error_span!("db", system = "store", db = "app.db").in_scope(|| {
                info!(level = 1, txid.min = "01", txid.max = "02", size = 5_u64, "compaction complete");
                warn!(db = "other.db", attempts = 2, "shutdown sync failed");
            });
            debug!("below the level");
        });
        assert_eq!(
            lines,
            "time=1970-01-01T00:00:01.500Z level=INFO msg=\"compaction complete\" system=store db=app.db level=1 \
             txid.min=01 txid.max=02 size=5\n\
             time=1970-01-01T00:00:01.500Z level=WARN msg=\"shutdown sync failed\" system=store db=other.db attempts=2\n"
        );
    }

    #[test]
    fn durations_are_go_text_or_nanoseconds() {
        let write = || info!("sync-interval" = duration(Duration::from_secs(300)), r#type = "file", "replicating to");
        let text = captured(LogSettings::default(), write);
        assert!(text.ends_with("msg=\"replicating to\" sync-interval=5m0s type=file\n"), "{text}");
        let json = captured(LogSettings { shape: Shape::Json, ..LogSettings::default() }, write);
        let want = "{\"time\":\"1970-01-01T00:00:01.5Z\",\"level\":\"INFO\",\"msg\":\"replicating to\",\
                    \"sync-interval\":300000000000,\"type\":\"file\"}\n";
        assert_eq!(json, want);
    }

    #[test]
    fn records_of_other_crates_are_not_ours_to_print() {
        let lines = captured(LogSettings::default(), || info!(target: "rusqlite", "not ours"));
        assert_eq!(lines, "");
        // Those of the crates the program is cut into are.
        for ours in ["litestream", "litestream::cli", "litestream_engine::store", "litestream_storage"] {
            assert!(is_ours(ours), "{ours}");
        }
        assert!(!is_ours("litestreams"));
    }

    #[test]
    fn level_names_are_taken_in_any_case_and_unknown_is_info() {
        for (text, level) in [
            ("TRACE", Level::TRACE),
            ("Warning", Level::WARN),
            ("error", Level::ERROR),
            ("bogus", Level::INFO),
            ("", Level::INFO),
        ] {
            assert_eq!(parse_level(text), level, "{text}");
        }
    }
}
