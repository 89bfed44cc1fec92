//! The pages of `nunatak serve` as their readers meet them, in a real headless Chromium; left out where there is none.

mod chromium;

use std::fs;
use std::io::{Write, stderr};

use chromium::Chromium;
use serde_json::json;

use crate::serve::{Server, build};

/// Letters of several bytes stand before the evidence, because offsets are in bytes.
const FRAM: &str =
    "Nansen’s “Fram” – a three-masted schooner – was built in Larvik by Colin Archer, and launched on 26 October 1892.";
const QUESTION: &str = "Who built the Fram?";

/// A browser, or a line that says why there is none.
fn browser() -> Option<Chromium> {
    let found = chromium::find();
    if found.is_none() {
        // Past the harness, which keeps what the macros print of a test that passes.
        let _ = writeln!(stderr(), "left out: there is no Chromium in the path, and NUNATAK_CHROMIUM names none");
    }
    found.map(|browser| Chromium::start(&browser))
}

/// Whether nothing is wider than the window.
fn fits(browser: &mut Chromium) -> bool {
    browser.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth") == true
}

/// The page stands in both schemes and at the width of a phone, and pictures of it are kept.
fn holds_everywhere(browser: &mut Chromium, name: &str) {
    for scheme in ["light", "dark"] {
        browser.scheme(scheme);
        for (width, height) in [(1000, 900), (390, 844)] {
            browser.size(width, height);
            browser.picture(&format!("{name}-{scheme}-{width}"));
            assert!(fits(browser), "{name} is wider than {width} pixels");
        }
    }
    let grounds = ["light", "dark"].map(|scheme| {
        browser.scheme(scheme);
        browser.value("getComputedStyle(document.body).backgroundColor")
    });
    assert_ne!(grounds[0], grounds[1], "{name} has one scheme");
    browser.scheme("light");
    browser.size(1000, 900);
}

#[test]
fn the_page_asks_searches_and_says_what_is_wrong_in_a_real_browser() {
    let Some(mut browser) = browser() else { return };
    let folder = tempfile::tempdir().unwrap();
    let corpus = folder.path().join("c.jsonl");
    let records = [
        json!({"id": "fram", "title": "Fram", "text": FRAM, "year": 1892}),
        json!({"id": "moulin", "title": "Moulin", "text": "A moulin is a shaft in a glacier.", "year": 2001}),
        json!({"id": "evil", "title": "<b>Bold</b>", "text": "<img src=x onerror=alert(1)> Penguins built nothing at all.", "year": 2002}),
    ];
    fs::write(&corpus, records.map(|record| record.to_string()).join("\n")).unwrap();
    let index = build(folder.path(), &corpus, &[]);
    let server = Server::ready(&[&index], &["--mode", "hybrid"]);
    let home = format!("http://{}/", server.address);
    let nothing: [String; 0] = [];

    browser.open(&home);
    browser.wait("document.querySelectorAll('#index option').length === 1 && document.getElementById('state').textContent === ''");
    assert_eq!(browser.complaints(&server.address), nothing);

    // The question has the focus from the start, and Enter asks it.
    assert_eq!(browser.value("document.activeElement.id"), "question");
    browser.write(QUESTION);
    browser.press("Enter");
    browser.wait("!!document.querySelector('#result mark') && document.getElementById('state').textContent === ''");
    let answer = browser.text("#result .answer");
    assert!(answer.contains("Archer"), "{answer}");
    assert_eq!(browser.text("#result mark"), answer);
    assert_eq!(browser.value("document.querySelector('#result mark').parentElement.textContent"), FRAM);
    let heads = browser.value("[...document.querySelectorAll('#result th')].map(head => head.textContent)");
    assert_eq!(heads, json!(["by words", "by meaning", "together", "re-ranked", "passage", "tokens", "read as"]));
    assert!(browser.value("document.querySelectorAll('#result svg .way').length").as_u64().unwrap() > 0);
    assert_eq!(browser.value("[...document.querySelectorAll('#result .bar span')].some(part => part.title === 'read' && part.clientWidth > 1)"), true);
    holds_everywhere(&mut browser, "answer");

    // Read twice, as the settings say; they are reached and opened by keys alone.
    browser.value("document.querySelector('#settings summary').focus()");
    browser.press("Enter");
    browser.wait("document.getElementById('settings').open");
    browser.value("document.getElementById('recursion').value = 'textual'");
    browser.value("document.getElementById('ask').focus()");
    browser.press(" ");
    browser.wait("document.getElementById('result').innerText.includes('The second pass') && document.getElementById('state').textContent === ''");
    holds_everywhere(&mut browser, "twice");
    browser.value("document.getElementById('recursion').value = ''");

    // What a passage holds is shown, and is never markup.
    browser.value("document.getElementById('question').value = 'Penguins'");
    browser.value("document.getElementById('search').focus()");
    browser.press("Enter");
    browser.wait("document.getElementById('result').innerText.includes('first stage place') && document.getElementById('state').textContent === ''");
    let found = browser.text("#result");
    assert!(found.contains("<b>Bold</b>") && found.contains("<img src=x onerror=alert(1)>"), "{found}");
    assert_eq!(browser.value("document.querySelectorAll('#result img, #result b').length"), 0);
    holds_everywhere(&mut browser, "search");

    browser.value("document.querySelector('#about summary').focus()");
    browser.press("Enter");
    browser.wait("document.querySelectorAll('#indexes tbody tr').length === 1");
    let listed = browser.text("#indexes");
    assert!(listed.contains("ice") && listed.contains("answers"), "{listed}");
    holds_everywhere(&mut browser, "indexes");
    assert_eq!(browser.complaints(&server.address), nothing);

    // What the server refuses is said in its words. The browser writes the status into its console, and nothing else.
    browser.value("document.getElementById('filter').value = 'yaer<1900'");
    browser.value("document.getElementById('question').focus()");
    browser.press("Enter");
    browser.wait("document.getElementById('state').className === 'bad'");
    let said = browser.text("#state");
    assert!(said.contains("yaer"), "{said}");
    holds_everywhere(&mut browser, "refused");
    let complaints = browser.complaints(&server.address);
    assert!(complaints.iter().all(|line| line.contains("status of 422")), "{complaints:?}");
    // And it is not the end: with a filter that can be, the next question is answered.
    browser.value("document.getElementById('filter').value = 'year<1900'");
    browser.value(&format!("document.getElementById('question').value = {}", json!(QUESTION)));
    browser.press("Enter");
    browser.wait("!!document.querySelector('#result mark') && document.getElementById('state').textContent === ''");
    assert_eq!(browser.value("document.querySelectorAll('#result tbody tr').length"), 1);
    assert_eq!(browser.complaints(&server.address), nothing);

    // The way to the description.
    browser.value("document.querySelector('footer a').focus()");
    browser.press("Enter");
    browser.wait("location.pathname === '/docs' && document.readyState === 'complete'");
    assert_eq!(browser.value("document.querySelectorAll('details[open]').length"), 0);
    holds_everywhere(&mut browser, "docs");
    browser.value("document.querySelector('details summary').focus()");
    browser.press("Enter");
    browser.wait("document.querySelectorAll('details[open]').length === 1");
    holds_everywhere(&mut browser, "docs-open");
    browser.value("document.querySelectorAll('details').forEach(details => { details.open = true; })");
    for width in [1000, 390] {
        browser.size(width, 844);
        assert!(fits(&mut browser), "an open part of /docs is wider than {width} pixels");
    }
    assert_eq!(browser.complaints(&server.address), nothing);
}

#[test]
fn a_server_that_asks_for_a_key_says_so_on_the_page_and_takes_it_there() {
    let Some(mut browser) = browser() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (corpus, keys) = (folder.path().join("c.jsonl"), folder.path().join("keys.txt"));
    fs::write(&corpus, json!({"id": "fram", "text": FRAM}).to_string()).unwrap();
    fs::write(&keys, "a-key-of-mine-0123\n").unwrap();
    let index = build(folder.path(), &corpus, &["--no-dense"]);
    let server = Server::ready(&[&index], &["--rerank", "none", "--keys", keys.to_str().unwrap()]);
    browser.open(&format!("http://{}/", server.address));
    browser.wait("document.getElementById('settings').open");
    assert!(browser.text("#state").contains("asks for a key"));
    browser.picture("key");
    browser.value("document.getElementById('key').focus()");
    browser.write("a-key-of-mine-0123");
    browser.press("Tab");
    browser.wait("document.querySelectorAll('#index option').length === 1 && document.getElementById('state').textContent === ''");
    browser.value("document.getElementById('question').value = 'Fram'");
    browser.value("document.getElementById('search').focus()");
    browser.press("Enter");
    browser.wait("document.getElementById('result').innerText.includes('Colin Archer')");
    let complaints = browser.complaints(&server.address);
    assert!(complaints.iter().all(|line| line.contains("status of 401")), "{complaints:?}");

    // The description is open to all, and its commands have the key in them.
    browser.open(&format!("http://{}/docs", server.address));
    let pages = browser.text("main");
    assert!(pages.contains("This server asks for a key."), "{pages}");
    let command = browser.value("document.querySelector('pre').textContent");
    assert!(command.as_str().unwrap().contains(&format!("'http://{}/v1/answer'", server.address)), "{command}");
    assert!(command.as_str().unwrap().contains("Authorization: Bearer $KEY"), "{command}");
}
