//! The daemon's log, on stderr.

use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::{EnvFilter, Layer, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

use crate::settings::Settings;

/// Sets the log's level: a filter of `tracing` for what is Enid's own.
pub type Level = Arc<dyn Fn(&str) + Send + Sync>;

/// Starts the log; what sets its level later.
pub fn start(settings: &Settings) -> Level {
    // What the SDK says of credentials that cannot be had is in the answer of the call that lacks them.
    let filter = |level: &str| EnvFilter::new(format!("warn,aws_config=error,enid={level}"));
    let (filtered, reload) = reload::Layer::new(filter(&settings.log_level));
    let layer = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let layer = if settings.log_json { layer.json().boxed() } else { layer.with_ansi(false).boxed() };
    tracing_subscriber::registry().with(layer.with_filter(filtered)).init();
    let level = Mutex::new(settings.log_level.clone());
    Arc::new(move |wanted: &str| {
        let mut level = level.lock().unwrap_or_else(PoisonError::into_inner);
        if *level != wanted {
            wanted.clone_into(&mut level);
            // It fails only where there is no log any more.
            let _ = reload.reload(filter(wanted));
        }
    })
}
