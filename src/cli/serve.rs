//! `weir serve`: the main job.

use super::Failure;
use crate::app::{App, Listening};
use crate::config::weir_toml::Settings;
use crate::telemetry::log_lines;

/// Serves until a signal ends it.
pub fn run(settings: Settings, upgrade: bool) -> Result<(), Failure> {
    log_lines::start();
    let served = App::open(settings).and_then(|app| app.run(Listening { upgrade, demo_provider: None, announcement: None }));
    log_lines::flush();
    served
}
