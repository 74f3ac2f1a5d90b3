//! Opening the port, with errors that say what to do.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpListener;

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("port {} of {} is in use by another program", address.port(), address.ip())]
    InUse { address: SocketAddr },
    #[error("no permission to listen on port {} (ports below 1024 need a privilege)", address.port())]
    Denied { address: SocketAddr },
    #[error("this machine has no address {}", address.ip())]
    NoSuchAddress { address: SocketAddr },
    #[error("cannot listen on {address}")]
    Other { address: SocketAddr, source: io::Error },
}

/// Listens on `address`; port 0 lets the system choose one.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse { address },
        io::ErrorKind::PermissionDenied => ListenError::Denied { address },
        io::ErrorKind::AddrNotAvailable => ListenError::NoSuchAddress { address },
        _ => ListenError::Other { address, source },
    })
}
