//! HTTP plumbing shared by the server, the hub, the agent and the load generator. It knows no route and no model.
#![forbid(unsafe_code)]

pub mod body;
pub mod connections;
pub mod listen;
pub mod sse;
mod stall;

pub use connections::Stage;
