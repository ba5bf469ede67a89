//! Serves local Hugging Face folders as a Hub, for trying downloads without one:
//!
//! ```text
//! cargo run --release --example hub_server -- DIR [--port 8080]
//! HF_ENDPOINT=http://127.0.0.1:8080 eslm-kd download org/name
//! ```
//!
//! Every folder `DIR/org/name` becomes the repository `org/name`; a preset such as gpt2-medium asks
//! for `openai-community/gpt2-medium`. Large files are streamed and support ranges.

#[path = "../tests/it/support/hub_server.rs"]
mod hub_server;

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (mut dir, mut port) = (None, 8080);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--port" => {
                port = arguments.next().and_then(|p| p.parse().ok()).unwrap_or_else(|| usage())
            }
            _ => dir = Some(std::path::PathBuf::from(argument)),
        }
    }
    let dir = dir.unwrap_or_else(|| usage());
    let server = hub_server::HubServer::start(port)?;
    for org in std::fs::read_dir(&dir)?.flatten().filter(|e| e.path().is_dir()) {
        for repo in std::fs::read_dir(org.path())?.flatten().filter(|e| e.path().is_dir()) {
            let id = format!(
                "{}/{}",
                org.file_name().to_string_lossy(),
                repo.file_name().to_string_lossy()
            );
            let commit = server.add_folder(&id, &repo.path())?;
            println!("{id} at commit {commit}");
        }
    }
    println!("serving {} as HF_ENDPOINT={}", dir.display(), server.endpoint);
    loop {
        std::thread::park();
    }
}

fn usage() -> ! {
    eprintln!("usage: hub_server DIR [--port 8080], where DIR holds org/name folders");
    std::process::exit(2)
}
