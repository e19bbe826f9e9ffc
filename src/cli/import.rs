//! `weir import litellm FILE`: another gateway's configuration or prices, as weir's files.

use super::Failure;
use crate::config::litellm;
use clap::{Args, Subcommand};
use std::io::Write;
use std::path::PathBuf;

/// `weir import …`
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// From which gateway.
    #[command(subcommand)]
    pub from: From,
}

/// What can be read.
#[derive(Debug, Subcommand)]
pub enum From {
    /// A LiteLLM config.yaml, or its public price list (model_prices_and_context_window.json)
    Litellm {
        /// The file
        file: PathBuf,
        /// Where routing.toml and prices.toml are written; files that are there are not overwritten
        #[arg(long, default_value = ".")]
        into: PathBuf,
    },
}

/// Writes the files and lists what could not be carried over.
pub fn run(args: &ImportArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let From::Litellm { file, into } = &args.from;
    let text = std::fs::read_to_string(file).map_err(|error| Failure::Failed(format!("{}: {error}", file.display())))?;
    let imported = litellm::import(&file.to_string_lossy(), &text).map_err(|problem| Failure::Failed(problem.to_string()))?;
    for (name, content) in [("routing.toml", imported.routing), ("prices.toml", Some(imported.prices))] {
        let Some(content) = content else { continue };
        let path = into.join(name);
        let mut target = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|error| Failure::Failed(format!("{}: {error}: choose another folder with --into", path.display())))?;
        target.write_all(content.as_bytes())?;
        writeln!(out, "wrote {}", path.display())?;
    }
    for left in &imported.left {
        writeln!(out, "not carried over: {left}")?;
    }
    Ok(())
}
