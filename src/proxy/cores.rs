//! The proxy's listeners: on each core a runtime of its own that accepts, serves and keeps its connections.
//!
//! A connection stays on its core: nothing wakes another one, and there is no shared run queue. Measured on one core this took
//! 40 µs off a request of 1 KB (`benches/README.md`). Each core has a descriptor of its own for the same listening socket, so
//! a new connection goes to a core that is awake or idle, not to one that was drawn.

use super::Proxy;
use crate::telemetry::log_lines::{Severity, event};
use async_trait::async_trait;
use pingora_core::listeners::ListenerConfig;
use pingora_core::server::{ListenFds, ShutdownWatch};
use pingora_core::services::Service as PingoraService;
use pingora_core::services::listening::Service;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{IntoRawFd, OwnedFd};

/// The listening sockets of a server, before it runs.
#[derive(Debug, Default)]
pub struct Sockets {
    /// By address; none of them in a process that gets them from the one it replaces.
    bound: Vec<(String, Option<TcpListener>)>,
}

/// The proxy on one core.
pub struct Core {
    service: Service<Proxy>,
    /// Its descriptors by the names under which they go to a successor; `None`: the predecessor hands it over.
    sockets: Vec<(String, Option<OwnedFd>)>,
}

impl Sockets {
    /// Binds each address. The error names the one that cannot be had.
    pub fn bind(addresses: &[SocketAddr]) -> Result<Sockets, String> {
        let bind = |address: &SocketAddr| {
            let bound = TcpListener::bind(address).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
            bound.map(|listener| (address.to_string(), Some(listener))).map_err(|error| format!("cannot listen on {address}: {error}"))
        };
        Ok(Sockets { bound: addresses.iter().map(bind).collect::<Result<_, _>>()? })
    }

    /// They come from the process that this one replaces.
    pub fn handed_over(addresses: &[SocketAddr]) -> Sockets {
        Sockets { bound: addresses.iter().map(|address| (address.to_string(), None)).collect() }
    }

    /// `proxy` on the core with this number (from 0), with what `listener` makes of each socket's name.
    pub fn core(
        &self,
        number: usize,
        proxy: Proxy,
        mut listener: impl FnMut(String) -> Result<ListenerConfig, String>,
    ) -> Result<Core, String> {
        let mut service = Service::new("proxy".into(), proxy);
        let mut sockets = Vec::with_capacity(self.bound.len());
        for (address, bound) in &self.bound {
            // The first has the address as its name, as it would without cores. No spaces: Pingora hands the names over as one text.
            let name = if number == 0 { address.clone() } else { format!("{address}#{number}") };
            let own =
                bound.as_ref().map(TcpListener::try_clone).transpose().map_err(|error| format!("cannot listen on {address}: {error}"))?;
            service.add_listener(listener(name.clone())?);
            sockets.push((name, own.map(OwnedFd::from)));
        }
        Ok(Core { service, sockets })
    }
}

#[async_trait]
impl PingoraService for Core {
    async fn start_service(&mut self, fds: Option<ListenFds>, shutdown: ShutdownWatch, listeners_per_fd: usize) {
        if let Some(fds) = &fds {
            let mut fds = fds.lock();
            for (name, socket) in &mut self.sockets {
                match socket.take() {
                    Some(socket) => fds.add(name.clone(), socket.into_raw_fd()),
                    None if fds.get(name).is_some() => {}
                    None => {
                        event(Severity::Warn, "a core stays idle", "the predecessor ran fewer threads and handed no socket over for it");
                        return;
                    }
                }
            }
        }
        PingoraService::start_service(&mut self.service, fds, shutdown, listeners_per_fd).await;
    }

    fn name(&self) -> &str {
        "proxy"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}
