//! `weir export`: rows that a billing system refused for good.

use super::Failure;
use crate::export::revive;
use crate::store::Store;
use crate::store::ledger::Sink;
use clap::{Args, Subcommand};
use std::io::Write;

/// `weir export …`
#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(subcommand)]
    command: ExportCommand,
}

#[derive(Debug, Subcommand)]
enum ExportCommand {
    /// Send rows again that were refused for good, once what was wrong is mended
    Revive {
        /// Only those of lago or openmeter (default: of each export in weir.toml)
        #[arg(long, value_parser = sink)]
        sink: Option<Sink>,
    },
}

fn sink(text: &str) -> Result<Sink, String> {
    [Sink::Lago, Sink::OpenMeter].into_iter().find(|sink| sink.name() == text).ok_or_else(|| "expected lago or openmeter".into())
}

/// Runs `weir export …`. `configured` are the exports in `weir.toml`: to others nothing can be sent, so they keep their dead letters.
pub fn run(args: ExportArgs, store: &Store, configured: &[Sink], out: &mut dyn Write) -> Result<(), Failure> {
    let ExportCommand::Revive { sink: asked } = args.command;
    if let Some(sink) = asked
        && !configured.contains(&sink)
    {
        return Err(Failure::Failed(format!("weir.toml has no [export.{}]", sink.name())));
    }
    for sink in configured.iter().filter(|sink| asked.is_none_or(|asked| asked == **sink)) {
        let revived = revive(store, *sink)?;
        write!(out, "{}: {} rows wait again", sink.name(), revived.waiting)?;
        if revived.gone > 0 {
            write!(out, ", {} are no longer in the ledger", revived.gone)?;
        }
        writeln!(out)?;
    }
    if configured.is_empty() {
        writeln!(out, "weir.toml has no export")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ledger::row::tests::full_row;
    use crate::store::ledger::{Ledger, Settings};

    fn told(store: &Store, sink: Option<Sink>, configured: &[Sink]) -> Result<String, String> {
        let mut out = Vec::new();
        let args = ExportArgs { command: ExportCommand::Revive { sink } };
        run(args, store, configured, &mut out).map_err(|failure| failure.to_string())?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn dead_letters_come_back_if_their_rows_are_there() {
        let store = Store::in_memory().unwrap();
        let ledger = Ledger::start(&store, Settings::default()).unwrap();
        let row = full_row("r1");
        let _ = ledger.open(row.facts).unwrap().close(row.outcome);
        ledger.shutdown();
        // The second has the number of another row, the third that of none.
        let dead = "INSERT INTO export_dead VALUES (1, 1, 'r1', 'a', '', 5), (2, 1, 'r0', 'a', '', 5), (2, 9, 'r9', 'a', '', 5)";
        store.write(|tx| Ok(tx.execute_batch(dead)?)).unwrap();
        let both = [Sink::Lago, Sink::OpenMeter];
        assert_eq!(told(&store, Some(Sink::OpenMeter), &[Sink::Lago]).unwrap_err(), "weir.toml has no [export.openmeter]");
        assert_eq!(told(&store, Some(Sink::OpenMeter), &both).unwrap(), "openmeter: 0 rows wait again, 2 are no longer in the ledger\n");
        assert_eq!(told(&store, None, &both).unwrap(), "lago: 1 rows wait again\nopenmeter: 0 rows wait again\n");
        let waiting = |connection: &rusqlite::Connection| {
            let query = "SELECT (SELECT group_concat(sink || ':' || ledger_id) FROM outbox), (SELECT count(*) FROM export_dead)";
            Ok(connection.query_row(query, [], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?)
        };
        assert_eq!(store.read(waiting).unwrap(), ("1:1".into(), 0));
    }
}
