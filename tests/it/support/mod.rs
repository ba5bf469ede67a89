pub mod golden;
pub mod hub_server;
pub mod tiny;
