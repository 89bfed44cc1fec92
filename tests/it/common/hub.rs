//! A model hub on this machine, with the part of the hub's protocol that its clients use to list and to
//! download.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// The commit that every file is of.
const COMMIT: &str = "0123456789012345678901234567890123456789";

/// A running hub with one model.
pub struct Hub {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    /// Serve these files as the model `id` until the process ends.
    pub fn serve(id: &'static str, files: Vec<(&'static str, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away is its own affair.
                let _ = answer(stream.unwrap(), id, &files, &seen);
            }
        });
        Self { port, requests }
    }

    /// What `HF_ENDPOINT` has to be.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The paths that were asked for so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn answer(stream: TcpStream, id: &str, files: &[(&str, Vec<u8>)], seen: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut probe = false;
    for header in lines {
        let header = header?.to_ascii_lowercase();
        probe |= header == "range: bytes=0-0";
        if header.is_empty() {
            break;
        }
    }
    seen.lock().unwrap().push(path.clone());
    let mut out = stream;
    let mut respond = |status: &str, headers: &str, body: &[u8]| -> std::io::Result<()> {
        write!(out, "HTTP/1.1 {status}\r\n{headers}connection: close\r\ncontent-length: {}\r\n\r\n", body.len())?;
        out.write_all(body)
    };
    if path == format!("/api/models/{id}/revision/main") {
        let siblings: Vec<_> = files.iter().map(|(name, _)| serde_json::json!({"rfilename": name})).collect();
        let info = serde_json::json!({"sha": COMMIT, "siblings": siblings});
        return respond("200 OK", "content-type: application/json\r\n", info.to_string().as_bytes());
    }
    let name = path.strip_prefix(&format!("/{id}/resolve/main/")).unwrap_or_default();
    let Some((_, body)) = files.iter().find(|(file, _)| *file == name) else {
        return respond("404 Not Found", "", b"");
    };
    let end = if probe { 1 } else { body.len() };
    let headers = format!(
        "x-repo-commit: {COMMIT}\r\netag: \"{}\"\r\ncontent-range: bytes 0-{}/{}\r\n",
        name.replace('/', "-"),
        end - 1,
        body.len()
    );
    respond("206 Partial Content", &headers, &body[..end])
}
