//! HTTP plumbing shared by the server, the hub, the agent and the load generator.
#![forbid(unsafe_code)]
