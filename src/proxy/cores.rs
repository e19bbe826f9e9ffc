//! The proxy's listeners: on each core a runtime of its own that accepts, serves and keeps its connections.
//!
//! A connection stays on its core: nothing wakes another one, and there is no shared run queue. Measured on one core this took
//! 40 µs off a request of 1 KB (`benches/README.md`). Each core has a descriptor of its own for the same listening socket, so
//! a new connection goes to a core that is awake or idle, not to one that was drawn.
//!
//! A successor gets one descriptor for each address, whatever the number of cores: Pingora hands over 32 at most.

use super::Proxy;
use crate::telemetry::log_lines::{Severity, event};
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora_core::listeners::ListenerConfig;
use pingora_core::server::{Fds, ListenFds, ShutdownWatch};
use pingora_core::services::Service as PingoraService;
use pingora_core::services::listening::Service;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// The listening sockets that this process has bound, by address. Those that were handed to it are in Pingora's table only.
#[derive(Debug, Default)]
pub struct Sockets {
    bound: Mutex<HashMap<String, TcpListener>>,
}

/// The proxy on one core.
pub struct Core {
    number: usize,
    service: Service<Proxy>,
    addresses: Vec<String>,
    sockets: Arc<Sockets>,
}

impl Sockets {
    /// Binds each address. The error names the one that cannot be had.
    pub fn bind(addresses: &[SocketAddr]) -> Result<Sockets, String> {
        let bind = |address: &SocketAddr| {
            let address = address.to_string();
            bind(&address).map(|listener| (address.clone(), listener)).map_err(|error| format!("cannot listen on {address}: {error}"))
        };
        Ok(Sockets { bound: Mutex::new(addresses.iter().map(bind).collect::<Result<_, _>>()?) })
    }

    /// Another descriptor for the socket at `address`: the one bound here, else the one in `shared` that was handed over, else one
    /// that is bound now, for a successor may have more addresses.
    fn descriptor(&self, address: &str, shared: &mut Fds) -> io::Result<OwnedFd> {
        let mut bound = self.bound.lock();
        if !bound.contains_key(address) {
            if let Some(handed_over) = shared.get(address) {
                return duplicate(*handed_over);
            }
            bound.insert(address.to_owned(), bind(address)?);
        }
        let listener = bound.get(address).ok_or(io::ErrorKind::NotFound)?;
        if shared.get(address).is_none() {
            shared.add(address.to_owned(), listener.as_raw_fd());
        }
        listener.try_clone().map(OwnedFd::from)
    }
}

fn bind(address: &str) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Another descriptor for what `fd` is. Asked of the kernel by number (Linux 5.6), since nobody here owns the descriptor.
fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(this, fd, PidfdGetfdFlags::empty())?)
}

impl Core {
    /// `proxy` on the core with this number (from 0) at each of `addresses`, with what `listener` makes of it.
    pub fn new(
        number: usize,
        proxy: Proxy,
        addresses: &[SocketAddr],
        sockets: Arc<Sockets>,
        listener: impl Fn(String) -> Result<ListenerConfig, String>,
    ) -> Result<Core, String> {
        let mut service = Service::new("proxy".into(), proxy);
        let addresses: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
        for address in &addresses {
            service.add_listener(listener(address.clone())?);
        }
        Ok(Core { number, service, addresses, sockets })
    }

    /// A table of this core's own descriptors. `None`: it has to stay idle.
    fn own_descriptors(&self, shared: &mut Fds) -> Option<Fds> {
        let mut own = Fds::new();
        for address in &self.addresses {
            let descriptor = self.sockets.descriptor(address, shared).map(IntoRawFd::into_raw_fd);
            let descriptor = match (descriptor, shared.get(address)) {
                (Ok(descriptor), _) => descriptor,
                // Where the kernel or a sandbox does not let it be shared, the first core takes what was handed over.
                (Err(_), Some(handed_over)) if self.number == 0 => *handed_over,
                (Err(error), _) => {
                    event(Severity::Error, "a core stays idle", &format!("its socket for {address} cannot be had: {error}"));
                    return None;
                }
            };
            own.add(address.clone(), descriptor);
        }
        Some(own)
    }
}

#[async_trait]
impl PingoraService for Core {
    async fn start_service(&mut self, fds: Option<ListenFds>, shutdown: ShutdownWatch, listeners_per_fd: usize) {
        let own = match &fds {
            Some(shared) => self.own_descriptors(&mut shared.lock()),
            None => Some(Fds::new()),
        };
        let Some(own) = own else { return };
        // Pingora's own lock around the table.
        let own = ListenFds::new(own.into());
        PingoraService::start_service(&mut self.service, Some(own), shutdown, listeners_per_fd).await;
    }

    fn name(&self) -> &str {
        "proxy"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        Some(self.addresses.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpStream;

    /// Somebody who connects is there for whoever accepts at `fd`.
    fn accepts(fd: OwnedFd, address: SocketAddr) {
        let listener = TcpListener::from(fd);
        listener.set_nonblocking(false).unwrap();
        let client = TcpStream::connect(address).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        drop(client);
        assert_eq!(accepted.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn each_core_has_its_own_descriptor_and_a_successor_one_for_each_address() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let (sockets, mut shared) = (Sockets::bind(&[address]).unwrap(), Fds::new());
        let name = address.to_string();
        let descriptors: Vec<_> = (0..40).map(|_| sockets.descriptor(&name, &mut shared).unwrap()).collect();
        assert_eq!(shared.serialize().0, [name.as_str()]);
        descriptors.into_iter().for_each(|descriptor| accepts(descriptor, address));

        // A successor: the table has what was handed over, and an address that is new there is bound.
        let successor = Sockets::default();
        accepts(successor.descriptor(&name, &mut shared).unwrap(), address);
        accepts(successor.descriptor(&name, &mut shared).unwrap(), address);
        assert!(successor.descriptor("127.0.0.1:0", &mut shared).is_ok());
        assert_eq!(shared.serialize().0.len(), 2);
        assert!(Sockets::bind(&[address]).unwrap_err().starts_with(&format!("cannot listen on {address}: ")));
    }
}
