pub mod golden;
pub mod hub_server;
