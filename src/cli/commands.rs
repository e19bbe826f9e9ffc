//! The command line: which commands there are, and what they have in common.

use super::{Failure, check, demo, export, import, key, route, serve, usage, vault};
use crate::config::problem::Problem;
use crate::config::weir_toml::{self, Settings};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Where the configuration is when nobody says.
pub const DEFAULT_CONFIG: &str = "conf/weir.toml";

/// An LLM gateway at the edge.
#[derive(Debug, Parser)]
#[command(name = "weir", version, about, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: SIGTERM drains, SIGHUP reloads, SIGQUIT hands the sockets to `weir serve --upgrade`
    Serve {
        #[command(flatten)]
        config: Config,
        /// Take the listening sockets over from the weir that is running
        #[arg(long)]
        upgrade: bool,
    },
    /// The whole gateway with a built-in provider and a throw-away store: no network, no account needed
    Demo {
        /// Port of the proxy; the admin listener takes the next one
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// Load everything and print every problem
    Check {
        #[command(flatten)]
        config: Config,
    },
    /// Explain what would be tried for a request, and why; nothing is called
    Route {
        #[command(flatten)]
        config: Config,
        #[command(flatten)]
        ask: route::RouteArgs,
    },
    /// Callers' keys
    Key {
        #[command(flatten)]
        config: Config,
        #[command(flatten)]
        key: key::KeyArgs,
    },
    /// Provider keys, the platform's and the users'
    Vault {
        #[command(flatten)]
        config: Config,
        #[command(flatten)]
        vault: vault::VaultArgs,
    },
    /// What was used and what it cost
    Usage {
        #[command(flatten)]
        config: Config,
        #[command(flatten)]
        usage: usage::UsageArgs,
    },
    /// Rows on their way to billing systems
    Export {
        #[command(flatten)]
        config: Config,
        #[command(flatten)]
        export: export::ExportArgs,
    },
    /// Make routing.toml and prices.toml from another gateway's files
    Import {
        #[command(flatten)]
        import: import::ImportArgs,
    },
}

/// `--config`
#[derive(Debug, clap::Args)]
struct Config {
    /// The configuration to use
    #[arg(id = "config", long = "config", default_value = DEFAULT_CONFIG, global = true)]
    path: PathBuf,
}

/// Runs the program. Errors go to stderr; 1 for what did not work, 2 for wrong usage.
pub fn main() -> ExitCode {
    // With huge pages every connection's mostly empty buffers are wholly resident. The allocator is built not to ask for them; this is for
    // systems that give them unasked. Where the kernel knows no such switch, nothing changes.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match command {
        Command::Serve { config, upgrade } => {
            drop(out);
            serve::run(settings(&config.path)?, upgrade)
        }
        Command::Demo { port } => {
            drop(out);
            demo::run(port)
        }
        Command::Check { config } => check::run(&config.path, &mut out),
        Command::Route { config, ask } => route::run(&ask, settings(&config.path)?, &mut out),
        Command::Key { config, key } => {
            let settings = settings(&config.path)?;
            // A routing file that does not load now does not keep anybody from making a key; its tiers are then not checked.
            let catalog = crate::app::load_catalog(&settings).ok();
            let tiers: Option<Vec<&str>> = catalog.as_ref().map(|catalog| catalog.tiers.keys().map(|name| &**name).collect());
            key::run(key, &crate::app::open_store(&settings)?, tiers.as_deref(), &mut out)
        }
        Command::Vault { config, vault } => {
            let settings = settings(&config.path)?;
            let (store, catalog) = (crate::app::open_store(&settings)?, crate::app::load_catalog(&settings).ok());
            let context = vault::Context { store: &store, masters: crate::app::master_refs(&settings), catalog: catalog.as_ref() };
            vault::run(vault, &context, &mut std::io::stdin().lock(), &mut out)
        }
        Command::Usage { config, usage } => usage::run(usage, &crate::app::open_store(&settings(&config.path)?)?, &mut out),
        Command::Export { config, export } => {
            let settings = settings(&config.path)?;
            export::run(export, &crate::app::open_store(&settings)?, &crate::export::sinks(&settings), &mut out)
        }
        Command::Import { import } => import::run(&import, &mut out),
    }
}

/// Reads `weir.toml`; every problem is reported.
pub fn settings(path: &Path) -> Result<Settings, Failure> {
    let text = read(path).map_err(|problem| crate::app::problems(vec![problem]))?;
    weir_toml::parse(&path.to_string_lossy(), &text).map_err(crate::app::problems)
}

/// The text of `weir.toml`.
pub fn read(path: &Path) -> Result<String, Problem> {
    std::fs::read_to_string(path).map_err(|error| Problem {
        file: path.to_string_lossy().into_owned(),
        line: 1,
        key: String::new(),
        what: format!("cannot be read: {error}; name another with --config"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_command_is_well_formed() {
        Arguments::command().debug_assert();
    }
}
