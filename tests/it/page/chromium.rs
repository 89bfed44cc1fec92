//! A headless Chromium, driven over the pipe that it offers (`--remote-debugging-pipe`): JSON, and a zero byte behind each message.
//!
//! The pipe needs nothing but the standard library, where WebDriver would need a driver of the same version, and the
//! DevTools port a client of WebSockets.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The variable that names the browser to take.
const BROWSER: &str = "NUNATAK_CHROMIUM";
/// The variable that names a folder for pictures.
const PICTURES: &str = "NUNATAK_SCREENSHOTS";
/// Its names in the path.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
/// Longest wait for anything: models run on few cores beside other tests.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where there is a browser: the one that is named, or the first in the path. One that is named and is not there is an error.
pub fn find() -> Option<PathBuf> {
    if let Some(named) = env::var_os(BROWSER).filter(|named| !named.is_empty()) {
        let named = PathBuf::from(named);
        assert!(named.is_file(), "{BROWSER} names {}, which is no file", named.display());
        return Some(named);
    }
    let path = env::var_os("PATH")?;
    let candidates = NAMES.iter().flat_map(|name| env::split_paths(&path).map(move |folder| folder.join(name)));
    candidates.into_iter().find(|candidate| candidate.is_file())
}

/// A browser with one tab.
pub struct Chromium {
    child: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    session: Option<String>,
    sent: u64,
    /// What it told without having been asked, since it was last looked at.
    events: Vec<Value>,
    profile: TempDir,
}

impl Chromium {
    /// Start it. Pages of other hosts than this machine are out of its reach.
    pub fn start(browser: &PathBuf) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        // It reads from descriptor 3 and writes to 4, which the standard library cannot hand on.
        command.args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1"]).arg(browser);
        command.args(["--headless=new", "--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage"]);
        command.args(["--no-first-run", "--disable-background-networking", "--disable-component-update"]);
        command.args(["--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        // Its sandbox refuses to work for root, to whom a folder that was just made belongs.
        if fs::metadata(profile.path()).unwrap().uid() == 0 {
            command.arg("--no-sandbox");
        }
        let mut child = command.arg("about:blank").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (commands, replies) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(replies).split(0).map_while(Result::ok) {
                if sender.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self { child, commands, messages, session: None, sent: 0, events: Vec::new(), profile };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log", "Network", "Audits"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser.size(1000, 900);
        browser
    }

    /// Send a command, and wait for what came of it.
    pub fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.sent += 1;
        let mut message = json!({"id": self.sent, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.commands.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let mut reply =
                self.messages.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("no reply to {method}: {e}"));
            if reply["id"] == self.sent {
                assert!(reply.get("error").is_none(), "{method}: {reply}");
                return reply["result"].take();
            }
            self.events.push(reply);
        }
    }

    /// Go to a page, and wait until all of it is there.
    pub fn open(&mut self, url: &str) {
        let gone = self.call("Page.navigate", json!({"url": url}));
        assert!(gone.get("errorText").is_none(), "{url}: {gone}");
        self.wait(&format!("location.href === {} && document.readyState === 'complete'", json!(url)));
    }

    /// The value of an expression on the page.
    pub fn value(&mut self, expression: &str) -> Value {
        let parameters = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut done = self.call("Runtime.evaluate", parameters);
        assert!(done.get("exceptionDetails").is_none(), "{expression}: {done}");
        done["result"]["value"].take()
    }

    /// The words of an element.
    pub fn text(&mut self, selector: &str) -> String {
        let text = self.value(&format!("document.querySelector({}).innerText", json!(selector)));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Wait until an expression holds.
    pub fn wait(&mut self, expression: &str) {
        let began = Instant::now();
        while self.value(expression) != true {
            if began.elapsed() > PATIENCE {
                let shown = self.value("document.body.innerText");
                panic!("it never came to {expression}; the page says {shown}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Type a text where the focus is.
    pub fn write(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text}));
    }

    /// Press a key that has a name, and let it go.
    pub fn press(&mut self, key: &str) {
        let (code, text) = match key {
            "Enter" => (13, "\r"),
            "Tab" => (9, ""),
            " " => (32, " "),
            key => panic!("what is the code of {key}?"),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({"type": kind, "key": key, "windowsVirtualKeyCode": code});
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = text.into();
            }
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// The size of the window, in pixels of a page.
    pub fn size(&mut self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    /// `light` or `dark`.
    pub fn scheme(&mut self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", features);
    }

    /// What went wrong since this was last asked, in one line each: exceptions, entries of the console, what the policy refused, and
    /// requests to another address than this one.
    pub fn complaints(&mut self, address: &str) -> Vec<String> {
        // What it had to say has come when it answers.
        self.value("new Promise(done => setTimeout(() => done(true), 100))");
        let home = format!("http://{address}/");
        let events = std::mem::take(&mut self.events);
        let wrong = events.iter().filter(|event| match event["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded" | "Audits.issueAdded" => true,
            "Network.requestWillBeSent" => {
                let url = event["params"]["request"]["url"].as_str().unwrap_or_default();
                !url.starts_with(&home) && !url.starts_with("data:")
            }
            _ => false,
        });
        wrong.map(|event| event["params"].to_string()).collect()
    }

    /// Keep a picture of the whole page.
    pub fn picture(&mut self, name: &str) {
        let shot = self.call("Page.captureScreenshot", json!({"format": "png", "captureBeyondViewport": true}));
        let bytes = BASE64_STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
        let named = env::var_os(PICTURES).filter(|named| !named.is_empty()).map(PathBuf::from);
        let folder = named.unwrap_or_else(|| self.profile.path().to_owned());
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("{name}.png")), bytes).unwrap();
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // Asked to go, it takes the processes along that it started.
        let _ = self.commands.write_all(format!("{}\0", json!({"id": 0, "method": "Browser.close"})).as_bytes());
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(5) {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
