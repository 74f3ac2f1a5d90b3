//! Which address and port to listen on.

use crate::defaults::{PORT, PORTS_TRIED};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use tokio::net::TcpListener;
use wire::listen::{ListenError, bind};

/// An address, or the one name that needs no resolver.
pub(super) fn parse_host(text: &str) -> Result<IpAddr, String> {
    if text == "localhost" {
        return Ok(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let address = text.trim_start_matches('[').trim_end_matches(']').parse();
    address.map_err(|_| "an IP address is needed, such as 127.0.0.1, 0.0.0.0 or ::1".to_owned())
}

/// A name without scheme and port, as it is compared.
pub(super) fn parse_allowed_host(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains([':', '/', ' ']) {
        return Err("a name alone is needed, such as box.lan: no scheme, no port".to_owned());
    }
    Ok(text.trim_end_matches('.').to_owned())
}

/// Listens on `port`; without one on the usual port, or the next that is free.
pub(super) async fn listen(host: IpAddr, port: Option<u16>) -> Result<TcpListener, ListenError> {
    if let Some(port) = port {
        return bind(SocketAddr::new(host, port)).await;
    }
    for port in PORT..PORT + PORTS_TRIED {
        match bind(SocketAddr::new(host, port)).await {
            Err(ListenError::InUse { .. }) => {}
            result => return result,
        }
    }
    Err(ListenError::InUse { address: SocketAddr::new(host, PORT) })
}
