//! A socket between plugin and daemon, with what is said in one breath sent in one packet.
//!
//! HTTP/2 says hello, settings, headers and message one by one and flushes after each; every flush would be a
//! system call on one side and a wake-up on the other. A flush waits for the tasks that are ready to run: what they
//! add goes along.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};
use tonic::transport::server::{Connected, UdsConnectInfo};

/// How often a flush lets the others run: once for the end of the handshake, once for the headers, once for the body.
const YIELDS: u8 = 3;

/// A connected socket.
pub struct Cork {
    socket: UnixStream,
    waiting: Vec<u8>,
    /// How often the flush has let the others run.
    yielded: u8,
}

impl Cork {
    /// Nothing is waiting.
    pub fn new(socket: UnixStream) -> Self {
        Cork { socket, waiting: Vec::new(), yielded: 0 }
    }

    fn send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(context, &self.waiting))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.waiting.drain(..sent);
        }
        self.yielded = 0;
        Poll::Ready(Ok(()))
    }
}

impl Connected for Cork {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.socket.connect_info()
    }
}

impl AsyncRead for Cork {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_read(context, into)
    }
}

impl AsyncWrite for Cork {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().waiting.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.waiting.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if this.yielded < YIELDS {
            this.yielded += 1;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.send(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.send(context))?;
        Pin::new(&mut this.socket).poll_shutdown(context)
    }
}
