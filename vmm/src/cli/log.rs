//! A log that can be turned elsewhere and made to tell more or less while posada runs, as Firecracker's clients have it.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt as log_fmt, registry, reload};
use vmm::api::{Logger, open_output};

/// Where messages go; to standard error if there is nothing.
static FILE: Mutex<Option<File>> = Mutex::new(None);
static SHOW_LEVEL: AtomicBool = AtomicBool::new(false);
static SHOW_ORIGIN: AtomicBool = AtomicBool::new(false);

/// Starts the log; warnings go to standard error. What is returned makes it another.
pub fn start() -> impl Fn(&Logger) -> Result<(), String> + Send + Sync + use<> {
    let (filter, handle) = reload::Layer::new(LevelFilter::WARN);
    let messages = log_fmt::layer()
        .log_internal_errors(false)
        .with_ansi(false)
        .event_format(Format)
        .with_writer(Output::lock);
    registry().with(filter).with(messages).init();
    move |logger| {
        set(logger)?;
        match logger.level {
            Some(level) => handle.reload(level).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }
}

fn set(logger: &Logger) -> Result<(), String> {
    if logger.module.is_some() {
        return Err("posada does not choose messages by module: leave it out".to_owned());
    }
    if let Some(path) = &logger.log_path {
        let file = open_output(path)
            .map_err(|error| format!("cannot open the log '{}': {error}", path.display()))?;
        *lock() = Some(file);
    }
    let show = |what: &AtomicBool, wanted: Option<bool>| {
        if let Some(wanted) = wanted {
            what.store(wanted, Ordering::Relaxed);
        }
    };
    show(&SHOW_LEVEL, logger.show_level);
    show(&SHOW_ORIGIN, logger.show_log_origin);
    Ok(())
}

fn lock() -> MutexGuard<'static, Option<File>> {
    FILE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where messages go, for as long as one is written.
struct Output(MutexGuard<'static, Option<File>>);

impl Output {
    fn lock() -> Self {
        Self(lock())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *self.0 {
            Some(file) => file.write(bytes),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A message on a line, with as much before it as is wanted.
struct Format;

impl<S, N> FormatEvent<S, N> for Format
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        if SHOW_LEVEL.load(Ordering::Relaxed) {
            write!(writer, "{} ", metadata.level())?;
        }
        if SHOW_ORIGIN.load(Ordering::Relaxed) {
            let (file, line) = (metadata.file().unwrap_or("?"), metadata.line().unwrap_or(0));
            write!(writer, "{file}:{line} ")?;
        }
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
