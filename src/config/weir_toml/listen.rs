//! `[listen]`

use crate::config::walk::Table;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Where weir listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The proxy listeners.
    pub proxy: Vec<SocketAddr>,
    /// The admin listener.
    pub admin: SocketAddr,
    /// The Unix socket that plugins in other proxies talk to.
    pub plugin: Option<PathBuf>,
    /// The proxy listeners speak TLS.
    pub tls: Option<Tls>,
}

/// A certificate and its key, PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The chain.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

const PROXY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8081);

pub(super) fn read(root: &mut Table<'_>, folder: &Path) -> Listen {
    let mut listen = Listen { proxy: vec![PROXY], admin: ADMIN, plugin: None, tls: None };
    let Some(mut table) = root.table("listen") else { return listen };
    if let Some(written) = table.strings("proxy") {
        listen.proxy = written.iter().filter_map(|text| address(&table, "proxy", text)).collect();
        if written.is_empty() {
            table.problem("proxy", "must have at least one address, such as \"127.0.0.1:8080\"");
        }
    }
    if let Some(admin) = table.string("admin") {
        listen.admin = address(&table, "admin", admin).unwrap_or(ADMIN);
    }
    // Port 0 is any free port, so two of them do not meet.
    if listen.admin.port() != 0 && listen.proxy.contains(&listen.admin) {
        table.problem("admin", "is the address of a proxy listener too; the admin API must not be reachable there");
    }
    if let Some(plugin) = table.string("plugin") {
        listen.plugin = socket(&table, plugin).map(|path| folder.join(path));
    }
    if let Some(mut tls) = table.table("tls") {
        tls.require("cert", "\"cert.pem\"");
        tls.require("key", "\"key.pem\"");
        let (cert, key) = (path(&mut tls, "cert", folder), path(&mut tls, "key", folder));
        listen.tls = cert.zip(key).map(|(cert, key)| Tls { cert, key });
        tls.finish();
    }
    table.finish();
    listen
}

fn address(table: &Table<'_>, key: &str, text: &str) -> Option<SocketAddr> {
    let address = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}").parse(),
        None => text.parse(),
    };
    address
        .map_err(|_| table.problem(key, format!("{text:?} is not an address with a port, such as \"127.0.0.1:8080\" or \"[::]:8080\"")))
        .ok()
}

fn socket<'t>(table: &Table<'_>, text: &'t str) -> Option<&'t str> {
    let path = text.strip_prefix("unix:").filter(|path| !path.is_empty());
    if path.is_none() {
        table.problem("plugin", "must be a Unix socket, such as \"unix:/run/weir/plugin.sock\"");
    }
    path
}

/// A path to a PEM file, with or without `file:`; its content does not belong here.
fn path<'a>(table: &mut Table<'a>, key: &'a str, folder: &Path) -> Option<PathBuf> {
    let text = table.string(key)?;
    if text.contains("-----BEGIN") {
        table.problem(key, "must be the path of a PEM file, not its content");
        return None;
    }
    Some(folder.join(text.strip_prefix("file:").unwrap_or(text)))
}
