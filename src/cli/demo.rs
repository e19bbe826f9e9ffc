//! `weir demo`: the whole gateway, with a provider of its own and a store that is gone afterwards.

use super::demo_provider::{KEY, MODELS};
use super::{Failure, commands};
use crate::app::{App, Listening};
use crate::engine::limit::Limits;
use crate::engine::money::Credits;
use crate::store::audit::Actor;
use crate::store::follow::Mirror;
use crate::store::keys::{self, NewKey, Scopes};
use crate::telemetry::{clock, log_lines};
use std::net::TcpListener;
use std::path::Path;

/// Credits the demo's key has.
const CREDITS: i64 = 1000;

/// Serves until a signal ends it, and leaves nothing behind.
pub fn run(port: u16) -> Result<(), Failure> {
    let folder = Folder::new()?;
    let provider_port = free_port()?;
    let admin_port =
        port.checked_add(1).ok_or_else(|| Failure::Usage("--port: 65534 at most, the admin listener takes the next one".into()))?;
    for wanted in [port, admin_port] {
        TcpListener::bind(("127.0.0.1", wanted))
            .map_err(|error| Failure::Failed(format!("port {wanted} cannot be used ({error}): choose another with --port")))?;
    }
    write_configuration(&folder.0, port, admin_port, provider_port)?;
    log_lines::start();
    let app = App::open(commands::settings(&folder.0.join("weir.toml"))?)?;
    let key = NewKey {
        name: "demo".into(),
        account: Some("demo".into()),
        tier: None,
        scopes: Scopes::default(),
        expires_ms: None,
        limits: Limits::default(),
        credits: Some(Credits(CREDITS * Credits::ONE.0)),
    };
    let created = keys::create(&app.gateway.store, &key, Actor { who: "demo", from: "" }, clock::now_ms())?;
    // A server mirrors what a command makes within a second; here both are one process, so take it in at once.
    let gateway = &app.gateway;
    gateway.callers.refresh(&gateway.store, &created.id)?;
    gateway.accounts.refresh(&gateway.store, &[&created.account], clock::now_ms())?;
    let announcement = Some(announcement(port, admin_port, created.key.expose()));
    app.run(Listening { upgrade: false, demo_provider: Some(format!("127.0.0.1:{provider_port}")), announcement })
}

/// What a visitor needs to try it.
fn announcement(port: u16, admin_port: u16, key: &str) -> String {
    let model = MODELS[0];
    format!(
        "weir is serving with a built-in provider. Everything it keeps is gone when it ends (Ctrl-C).\n\n\
         key      {key}\n\
         proxy    http://127.0.0.1:{port}/v1\n\
         metrics  http://127.0.0.1:{admin_port}/metrics\n\n\
         curl -N http://127.0.0.1:{port}/v1/chat/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d '{{\"model\":\"{model}\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"What is a weir?\"}}]}}'\n\n"
    )
}

fn write_configuration(folder: &Path, port: u16, admin_port: u16, provider_port: u16) -> Result<(), Failure> {
    let provider_key = folder.join("provider-key");
    std::fs::write(&provider_key, KEY)?;
    let weir = format!(
        "[listen]\nproxy = [\"127.0.0.1:{port}\"]\nadmin = \"127.0.0.1:{admin_port}\"\n\n[store]\nurl = \"sqlite:weir.db\"\n\n[ledger]\ncredit = \"0.001\"\n\n[files]\nrouting = \"routing.toml\"\nprices = \"prices.toml\"\n"
    );
    let mut routing = format!(
        "[provider.demo]\nkind = \"openai-compatible\"\nbase_url = \"http://127.0.0.1:{provider_port}/v1\"\nkey = \"file:{key}\"\n\n[provider.demo-anthropic]\nkind = \"anthropic\"\nbase_url = \"http://127.0.0.1:{provider_port}\"\nkey = \"file:{key}\"\npriority = 60\n\n",
        key = provider_key.display()
    );
    let mut prices = String::new();
    for (index, model) in MODELS.iter().enumerate() {
        routing += &format!(
            "[model.\"{model}\"]\ntargets = [{{ provider = \"demo\", model = \"{model}\" }}, {{ provider = \"demo-anthropic\", model = \"{model}\" }}]\ncontext_window = 128000\nmax_output = 4096\n\n"
        );
        for provider in ["demo", "demo-anthropic"] {
            let (input, output) = [("0.15", "0.60"), ("2.5", "10")][index % 2];
            prices += &format!("[price.\"{provider}/{model}\"]\ninput = \"{input}\"\noutput = \"{output}\"\n\n");
        }
    }
    routing += "[level.eco]\nmodels = [\"demo-small\"]\ncost_multiplier = \"0.1\"\n\n[level.balanced]\nmodels = [\"demo-small\", \"demo-large\"]\ncost_multiplier = \"0.25\"\n\n[level.precision]\nmodels = [\"demo-large\"]\ncost_multiplier = \"1.0\"\nfallback = false\n";
    for (name, text) in [("weir.toml", weir), ("routing.toml", routing), ("prices.toml", prices)] {
        std::fs::write(folder.join(name), text)?;
    }
    Ok(())
}

fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// A folder that goes with the program.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> Result<Folder, Failure> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::temp_dir().join(format!("weir-demo-{}-{}", std::process::id(), clock::now_ms()));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed stays in the folder for temporary files, whose keeper will.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
