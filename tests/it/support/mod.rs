pub mod golden;
pub mod hub_server;
pub mod place;
pub mod tiny;
