//! How long a download waits: for a connection, for a byte, because it was asked to.

use crate::hub::{Bench, ID};
use crate::support::hub_server::{Kind, On};
use eslm_kd::ErrorKind;
use eslm_kd::progress::Silent;
use eslm_kd::store::hub::{HubOptions, What, fetch_model};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

#[test]
fn the_server_says_how_long_to_wait() {
    let bench = Bench::with_model();
    bench.server.fault(On::Head, "config.json", Kind::Status(429, "Retry-After: 1\r\n"), 1);
    let started = Instant::now();
    bench.fetch().unwrap();
    assert!(
        started.elapsed() >= Duration::from_secs(1),
        "the back-off alone would be milliseconds"
    );
}

#[test]
fn a_stalled_server_costs_bounded_time() {
    for (on, file) in [(On::Body, "model.safetensors"), (On::Head, "config.json"), (On::Info, "")] {
        let bench = Bench::with_model();
        bench.server.fault(on, file, Kind::Stall(10), usize::MAX);
        let started = Instant::now();
        let message = bench.refused();
        assert!(
            message.contains("no byte within") || message.contains("no answer within"),
            "{on:?}: {message}"
        );
        assert!(started.elapsed() < Duration::from_secs(8), "{on:?}: {:?}", started.elapsed());
    }
}

/// A server that nobody answers at: its queue of connections is full, so that further ones hang.
#[test]
#[cfg(target_os = "linux")]
fn a_server_that_takes_no_connection_costs_bounded_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200));
    let waiting: Vec<TcpStream> = std::iter::from_fn(|| connect().ok()).take(5000).collect();
    assert!(waiting.len() < 5000, "the queue never fills");

    let cache = tempfile::tempdir().unwrap();
    let options = HubOptions {
        retries: 1,
        backoff: Duration::from_millis(2),
        connect_timeout: Duration::from_millis(300),
        ..HubOptions::new(&format!("http://{address}"), cache.path())
    };
    let started = Instant::now();
    let error = fetch_model(ID, None, What::Model, &options, &Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Hub);
    let text = error.to_string();
    assert!(text.contains("no connection within 300ms") && text.contains("(2 attempts)"), "{text}");
    // By the time-out of the connection, not by that of an answer, which is a minute.
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}
