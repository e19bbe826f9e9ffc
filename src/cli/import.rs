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

/// Writes the files and lists what could not be carried over. Nothing is written when one of the files is there already.
pub fn run(args: &ImportArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let From::Litellm { file, into } = &args.from;
    let text = std::fs::read_to_string(file).map_err(|error| Failure::Failed(format!("{}: {error}", file.display())))?;
    let imported = litellm::import(&file.to_string_lossy(), &text).map_err(|problem| Failure::Failed(problem.to_string()))?;
    let files = [("routing.toml", imported.routing), ("prices.toml", Some(imported.prices))];
    let files: Vec<_> = files.into_iter().filter_map(|(name, content)| Some((into.join(name), content?))).collect();
    // A link that leads nowhere is there, too.
    if let Some((path, _)) = files.iter().find(|(path, _)| path.symlink_metadata().is_ok()) {
        let path = path.display();
        return Err(Failure::Failed(format!(
            "{path} is there already; nothing was written: move it away or choose another folder with --into"
        )));
    }
    for (path, content) in &files {
        let written = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
        let written = written.and_then(|mut target| target.write_all(content.as_bytes()));
        written.map_err(|error| Failure::Failed(format!("{}: {error}: choose another folder with --into", path.display())))?;
        writeln!(out, "wrote {}", path.display())?;
    }
    for left in &imported.left {
        writeln!(out, "not carried over: {left}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_beside_a_file_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let (file, into) = (folder.path().join("litellm.yaml"), folder.path().to_owned());
        std::fs::write(&file, "model_list:\n  - model_name: a\n    litellm_params: {model: openai/a, api_key: sk-x}\n").unwrap();
        std::fs::write(into.join("prices.toml"), "mine").unwrap();
        let args = ImportArgs { from: From::Litellm { file, into: into.clone() } };
        let mut out = Vec::new();
        let Err(Failure::Failed(what)) = run(&args, &mut out) else { panic!("{out:?}") };
        assert!(what.contains("prices.toml is there already; nothing was written"), "{what}");
        assert!(out.is_empty() && !into.join("routing.toml").exists());
        assert_eq!(std::fs::read_to_string(into.join("prices.toml")).unwrap(), "mine");
        std::fs::remove_file(into.join("prices.toml")).unwrap();
        run(&args, &mut out).unwrap();
        assert!(into.join("routing.toml").exists() && String::from_utf8(out).unwrap().contains("not carried over: "));
    }
}
