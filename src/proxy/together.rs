//! Sends a request's header and the beginning of its body in one write.
//!
//! Pingora flushes a request's header by itself. On a connection of this kind what is written while it is held stays back and goes
//! out in front of the next write, in one system call. Measured: two sends a 1 KB request instead of four, half of its added cost.
//!
//! Not cancel-safe by itself: a connection dropped while it holds has sent nothing of what it holds, and is never pooled.

use async_trait::async_trait;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest, UniqueID,
    UniqueIDType, raw_connect::ProxyDigest,
};
use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection whose writes can be held together.
#[derive(Debug)]
pub struct Together {
    inner: Stream,
    held: Vec<u8>,
    holds: Arc<AtomicBool>,
}

impl Together {
    /// Wraps a connection.
    pub fn new(inner: Stream) -> Together {
        Together { inner, held: Vec::new(), holds: Arc::default() }
    }

    /// While true, what is written stays back.
    pub fn holds(&self) -> Arc<AtomicBool> {
        self.holds.clone()
    }

    /// Writes what is held, before `more`; how much of `more` went out too.
    fn poll_held(&mut self, cx: &mut Context<'_>, more: &[u8]) -> Poll<Result<usize>> {
        while !self.held.is_empty() {
            let wrote = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, &[IoSlice::new(&self.held), IoSlice::new(more)]))?;
            if wrote == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            if wrote >= self.held.len() {
                let of_more = wrote - self.held.len();
                self.held = Vec::new();
                return Poll::Ready(Ok(of_more));
            }
            self.held.drain(..wrote);
        }
        Poll::Ready(Ok(0))
    }
}

impl AsyncRead for Together {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Together {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        if self.holds.load(Relaxed) {
            self.held.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        if !self.held.is_empty() {
            let wrote = ready!(self.poll_held(cx, buf))?;
            if wrote > 0 {
                return Poll::Ready(Ok(wrote));
            }
        }
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if self.holds.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_held(cx, &[]))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Together {
    async fn shutdown(&mut self) {
        self.inner.shutdown().await;
    }
}

impl UniqueID for Together {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for Together {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.selected_alpn_proto()
    }
}

impl GetTimingDigest for Together {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }
}

impl GetProxyDigest for Together {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }
}

impl GetSocketDigest for Together {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }
}

#[async_trait]
impl Peek for Together {}
