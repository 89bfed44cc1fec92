//! Corpora as people have them: real files of every format, whole and broken.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests end by panicking")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, LargeStringArray, RecordBatch, StringArray, StringViewArray};
use nunatak::corpus::{CorpusOptions, CorpusReport, read};
use nunatak::error::Error;
use nunatak::types::Passage;
use proptest::prelude::*;
use tempfile::TempDir;

const TWO: &str = "{\"id\": \"a\", \"title\": \"A\", \"text\": \"First text.\"}\n{\"id\": 2, \"text\": \"Second.\"}\n";

struct Corpus(TempDir);

impl Corpus {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }
}

fn read_all(paths: &[PathBuf], passage_words: usize, skip_bad: u64) -> Result<(Vec<Passage>, CorpusReport), Error> {
    let mut passages = Vec::new();
    let options = CorpusOptions { passage_words, skip_bad };
    let report = read(paths, &options, &mut |passage| {
        passages.push(passage);
        Ok(())
    })?;
    assert_eq!(report.passages, passages.len() as u64);
    Ok((passages, report))
}

fn passages(path: &Path) -> Vec<Passage> {
    read_all(&[path.to_path_buf()], 0, 0).unwrap().0
}

/// Key, title and text of each passage.
fn rows(path: &Path) -> Vec<(String, String, String)> {
    passages(path).into_iter().map(|p| (p.key, p.title, p.text)).collect()
}

/// The error of reading, which must fail. (`unwrap_err` would print millions of passages.)
fn failure(paths: &[PathBuf], passage_words: usize, skip_bad: u64) -> Error {
    match read_all(paths, passage_words, skip_bad) {
        Ok((_, report)) => panic!("no error: {report:?}"),
        Err(error) => error,
    }
}

fn problem(path: &Path) -> String {
    let error = failure(&[path.to_path_buf()], 100, 0);
    assert!(error.hint().is_some(), "no hint: {error}");
    error.to_string()
}

fn two() -> Vec<(String, String, String)> {
    let row = |a: &str, b: &str, c: &str| (a.to_string(), b.to_string(), c.to_string());
    vec![row("a", "A", "First text."), row("2", "", "Second.")]
}

fn gz(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn zst(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 3).unwrap()
}

fn batch(id: ArrayRef, title: ArrayRef, text: ArrayRef) -> RecordBatch {
    // Columns that are not asked for stand before and between.
    let extra: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    RecordBatch::try_from_iter_with_nullable([
        ("n", extra.clone(), true),
        ("text", text, true),
        ("m", extra, true),
        ("title", title, true),
        ("id", id, true),
    ])
    .unwrap()
}

fn two_rows() -> RecordBatch {
    batch(
        Arc::new(StringArray::from(vec!["a", "2"])),
        Arc::new(LargeStringArray::from(vec![Some("A"), None])),
        Arc::new(StringViewArray::from(vec!["First text.", "Second."])),
    )
}

fn parquet(batch: &RecordBatch) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn arrow_file(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = arrow::ipc::writer::FileWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

fn arrow_stream(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = arrow::ipc::writer::StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn every_record_format_gives_the_same_passages() {
    let c = Corpus::new();
    let tsv = "a\t\"First text.\"\tA\r\n2\tSecond.\t\r\n";
    let with_header = "title\tid\tnote\tcontents\nA\ta\tx\tFirst text.\n\t2\ty\tSecond.\n";
    let formats: [(&str, Vec<u8>); 7] = [
        ("x.jsonl", TWO.into()),
        ("bom.ndjson", format!("\u{feff}{TWO}\n\n").into()),
        ("x.tsv", tsv.into()),
        ("named.tsv", with_header.into()),
        ("x.parquet", parquet(&two_rows())),
        ("x.arrow", arrow_file(&two_rows())),
        ("stream.arrow", arrow_stream(&two_rows())),
    ];
    for (name, content) in formats {
        assert_eq!(rows(&c.file(name, &content)), two(), "{name}");
        assert_eq!(rows(&c.file(&format!("{name}.gz"), gz(&content))), two(), "{name}.gz");
        assert_eq!(rows(&c.file(&format!("{name}.zst"), zst(&content))), two(), "{name}.zst");
    }
}

#[test]
fn first_bytes_count_more_than_names() {
    let c = Corpus::new();
    assert_eq!(rows(&c.file("no-extension", TWO)), two());
    assert_eq!(rows(&c.file("plain.jsonl.gz", TWO)), two());
    assert_eq!(rows(&c.file("zst.jsonl", zst(TWO.as_bytes()))), two());
    assert_eq!(rows(&c.file("data.bin", parquet(&two_rows()))), two());
    assert_eq!(rows(&c.file("table.dat", gz(&arrow_file(&two_rows())))), two());
    let two_members = [gz(&TWO.as_bytes()[..60]), gz(&TWO.as_bytes()[60..])].concat();
    assert_eq!(rows(&c.file("members.jsonl.gz", two_members)), two());
}

#[test]
fn compressed_arrow_files_are_read_as_pandas_writes_them() {
    use arrow::ipc::CompressionType;
    use arrow::ipc::writer::{FileWriter, IpcWriteOptions};
    let c = Corpus::new();
    let rows_in = two_rows();
    for codec in [CompressionType::LZ4_FRAME, CompressionType::ZSTD] {
        let options = IpcWriteOptions::default().try_with_compression(Some(codec)).unwrap();
        let mut writer = FileWriter::try_new_with_options(Vec::new(), &rows_in.schema(), options).unwrap();
        writer.write(&rows_in).unwrap();
        assert_eq!(rows(&c.file("x.feather", writer.into_inner().unwrap())), two(), "{codec:?}");
    }
}

#[test]
fn integer_ids_are_read_from_tables() {
    let c = Corpus::new();
    let text: ArrayRef = Arc::new(StringArray::from(vec!["One.", "Two."]));
    let table = batch(Arc::new(Int64Array::from(vec![7, -8])), text.clone(), text);
    let keys: Vec<String> = passages(&c.file("x.parquet", parquet(&table))).into_iter().map(|p| p.key).collect();
    assert_eq!(keys, ["7", "-8"]);
}

#[test]
fn a_moment_beyond_all_calendars_is_a_bad_row() {
    use arrow::array::{Date32Array, TimestampSecondArray};
    let c = Corpus::new();
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["One.", "Two.", "Three."]));
    let seconds = || TimestampSecondArray::from(vec![0, i64::MAX, 60]);
    let beyond: [(&str, ArrayRef); 3] = [
        ("plain", Arc::new(seconds())),
        ("zoned", Arc::new(seconds().with_timezone("UTC"))),
        ("day", Arc::new(Date32Array::from(vec![0, i32::MAX, 1]))),
    ];
    for (name, column) in beyond {
        let table = [("id", texts.clone()), ("text", texts.clone()), ("when", column)];
        let table = RecordBatch::try_from_iter(table).unwrap();
        let path = c.file(&format!("{name}.parquet"), parquet(&table));
        let error = problem(&path);
        assert!(error.contains(":2: the column `when` cannot be read here: "), "{error}");
        let (read, report) = read_all(&[path], 100, 1).unwrap();
        assert_eq!((read.len(), report.skipped), (2, 1), "{name}");
        assert!(read[1].metadata["when"].as_str().unwrap().starts_with("1970-01-0"), "{name}");
    }
}

#[test]
fn a_folder_is_read_in_order_and_hidden_and_unknown_files_are_left_alone() {
    let c = Corpus::new();
    c.file("b/page.html", "<title>Page</title><p>Html text.");
    c.file("b/.hidden.md", "# No\n\nno");
    c.file(".git/x.md", "no");
    #[cfg(unix)]
    std::os::unix::fs::symlink("user@host.123", c.path(".#a.md")).unwrap();
    c.file("a.md", "# Title\n\nSome prose.\n\n## Part\n\nMore prose.\n");
    c.file("c.txt.gz", gz(b"\xef\xbb\xbf Plain text. "));
    c.file("d.jsonl", TWO);
    c.file("e.png", [0, 1, 2]);
    c.file("empty.txt", "");
    let (found, report) = read_all(&[c.0.path().to_path_buf()], 100, 0).unwrap();
    let keys: Vec<&str> = found.iter().map(|p| p.key.as_str()).collect();
    assert_eq!(keys, ["a.md#1", "a.md#2", "b/page.html", "c.txt.gz", "a", "2"]);
    let titles: Vec<&str> = found.iter().map(|p| p.title.as_str()).collect();
    assert_eq!(titles, ["Title", "Title > Part", "Page", "c", "A", ""]);
    assert_eq!(found[2].source.file, "b/page.html");
    assert_eq!(found[3].text, "Plain text.");
    assert_eq!((found[3].source.start, found[3].source.end), (4, 15));
    assert_eq!((report.files, report.ignored_files, report.documents), (5, 1, 5));
    assert_eq!(report.words, 2 + 2 + 2 + 2 + 2 + 1);
}

#[test]
fn a_folder_without_documents_says_what_is_accepted() {
    let c = Corpus::new();
    c.file("e.png", [0, 1, 2]);
    let error = failure(&[c.0.path().to_path_buf()], 100, 0);
    assert!(error.to_string().contains("holds no file that can be read"), "{error}");
    assert!(error.hint().unwrap().contains(".parquet"));
}

#[test]
fn offsets_of_plain_text_and_records_are_exact_slices() {
    let c = Corpus::new();
    let text = "  Ice é moves. It is slow!\n\nA new paragraph begins here. And ends. ".repeat(20);
    let path = c.file("long.txt", format!("\u{feff}{text}"));
    let source = std::fs::read(&path).unwrap();
    let (found, _) = read_all(&[path], 20, 0).unwrap();
    assert!(found.len() > 5);
    for p in &found {
        assert_eq!(p.text.as_bytes(), &source[p.source.start as usize..p.source.end as usize]);
    }
    let line = serde_json::json!({"id": "r", "text": text}).to_string();
    let (found, _) = read_all(&[c.file("r.jsonl", line)], 20, 0).unwrap();
    assert_eq!(found[0].key, "r#1");
    for p in &found {
        assert_eq!(p.text, text[p.source.start as usize..p.source.end as usize]);
        assert_eq!(p.document(), "r");
    }
}

#[test]
fn offsets_of_markdown_enclose_the_text() {
    let c = Corpus::new();
    let source = "# Ice\n\nIt is *cold* there. ".to_string() + &"Many words follow here. ".repeat(40) + "The end.\n";
    let (found, _) = read_all(&[c.file("ice.md", &source)], 50, 0).unwrap();
    assert!(found.len() > 1);
    let slice = |p: &Passage| source[p.source.start as usize..p.source.end as usize].to_string();
    assert!(slice(&found[0]).starts_with("It is *cold* there."), "{}", slice(&found[0]));
    for p in &found[1..] {
        assert_eq!(slice(p), p.text);
    }
}

#[test]
fn a_bad_line_stops_with_its_number_and_reason() {
    let c = Corpus::new();
    let good = "{\"id\": \"g\", \"text\": \"x\"}\n";
    for (bad, part) in [
        ("{\"id\": \"x\"}", "there is no text"),
        ("{\"text\": \"x\"}", "there is no id"),
        ("{\"id\": \"\", \"text\": \"x\"}", "the id is empty"),
        ("{\"id\": \"x\", \"text\": \" \\n \"}", "the text is empty"),
        ("{\"id\": \"x\", \"text\": ", "not valid JSON"),
        ("plain words", "not a JSON object"),
        ("{\"id\": \"g\", \"text\": \"again\"}", "id \"g\" is taken: it was given at"),
    ] {
        let said = problem(&c.file("x.jsonl", format!("{good}{bad}\n")));
        assert!(said.contains("x.jsonl:2: ") && said.contains(part), "{bad}: {said}");
    }
    let said = problem(&c.file("x.jsonl", [good.as_bytes(), b"{\"id\": \"x\", \"text\": \"\xff\"}"].concat()));
    assert!(said.contains("x.jsonl:2: the line is not UTF-8"), "{said}");
    let said = problem(&c.file("x.tsv", "1\ttext\ttitle\n2 no tab\n"));
    assert!(said.contains("x.tsv:2: the line has no tab"), "{said}");
    let said = problem(&c.file("y.tsv", "1\ta\tb\tc\n"));
    assert!(said.contains("y.tsv:1: the line has 4 fields"), "{said}");
    let said = problem(&c.file("latin.txt", b"One\ntwo\nth\xe9\n"));
    assert!(said.contains("latin.txt:3: this is not UTF-8"), "{said}");
}

#[test]
fn a_line_of_ten_megabytes_is_refused_and_can_be_skipped() {
    let c = Corpus::new();
    let long = format!("{{\"id\": \"long\", \"text\": \"{}\"}}\n", "x".repeat(10 << 20));
    let path = c.file("x.jsonl", format!("{long}{TWO}"));
    assert!(problem(&path).contains("x.jsonl:1: the line is longer than 8 MiB"));
    let (found, report) = read_all(&[path], 100, 1).unwrap();
    assert_eq!((found.len(), report.skipped), (2, 1));
    let tsv = c.file("x.tsv", format!("1\t\"{}\n{}\"\tT\n", "x ".repeat(3 << 20), "y ".repeat(3 << 20)));
    assert!(problem(&tsv).contains("x.tsv:1: a quoted field: the line is longer than 8 MiB"));
}

#[test]
fn so_many_bad_lines_are_skipped_and_counted() {
    let c = Corpus::new();
    let path = c.file("x.jsonl", format!("bad\n{TWO}{{}}\n\n{{\"id\": 3, \"text\": \"Third.\"}}\n"));
    let (found, report) = read_all(std::slice::from_ref(&path), 100, 2).unwrap();
    assert_eq!(found.len(), 3);
    assert_eq!(report.skipped, 2);
    assert!(report.first_skipped[0].ends_with("x.jsonl:1: the line is not a JSON object"), "{report:?}");
    assert!(report.first_skipped[1].contains("x.jsonl:4: "), "{report:?}");
    let error = failure(&[path], 100, 1).to_string();
    assert!(error.contains("x.jsonl:4: ") && error.contains("bad line number 2, and 1 are allowed"), "{error}");
    let error = failure(&[c.file("all.jsonl", "a\nb\n")], 100, 5).to_string();
    assert!(error.contains("all 2 lines are bad"), "{error}");
}

#[test]
fn duplicate_ids_are_named_with_both_places() {
    let c = Corpus::new();
    let first = c.file("1.jsonl", TWO);
    let second = c.file("2.jsonl.gz", gz(b"{\"id\": \"b\", \"text\": \"x\"}\n{\"id\": \"2\", \"text\": \"x\"}\n"));
    let error = failure(&[first.clone(), second.clone()], 100, 0).to_string();
    assert!(error.contains("2.jsonl.gz:2: id \"2\" is taken"), "{error}");
    assert!(error.contains("1.jsonl:2"), "{error}");
    let error = failure(&[first.clone(), first.clone()], 100, 0).to_string();
    assert!(error.contains("1.jsonl:1: id \"a\" is taken: it was given at"), "{error}");
    assert_eq!(read_all(&[first, second], 100, 1).unwrap().1.skipped, 1);
}

/// 100 words a passage: a record of 399 words is taken as it is, one of 400 is cut; a section from 200 on.
#[test]
fn records_stay_whole_longer_than_sections_of_documents() {
    let c = Corpus::new();
    let words = |n: usize| "One two three four five. ".repeat(n / 5);
    let record = |n: usize| format!("{{\"id\": \"a\", \"text\": \"{}\"}}\n", words(n));
    let pieces = |path: &Path| read_all(&[path.to_path_buf()], 100, 0).unwrap().0.len();
    assert_eq!(pieces(&c.file("whole.jsonl", record(395))), 1);
    assert_eq!(pieces(&c.file("cut.jsonl", record(400))), 4);
    assert_eq!(pieces(&c.file("whole.md", words(195))), 1);
    assert_eq!(pieces(&c.file("cut.md", words(200))), 2);
}

#[test]
fn ids_that_look_like_pieces_cannot_collide_with_pieces() {
    let c = Corpus::new();
    let long = format!("{{\"id\": \"a\", \"text\": \"{}\"}}\n", "Some words here. ".repeat(40));
    let like = "{\"id\": \"a#2\", \"text\": \"x\"}\n";
    let before = problem_at(&c.file("before.jsonl", format!("{like}{long}")), 20);
    assert!(before.contains("before.jsonl:2: the name of the piece \"a#2\" is taken"), "{before}");
    let after = problem_at(&c.file("after.jsonl", format!("{long}{like}")), 20);
    assert!(after.contains("after.jsonl:2: id \"a#2\" is taken: it was given at"), "{after}");
    // Whole texts have no pieces, and such ids are then as good as any.
    assert_eq!(read_all(&[c.path("after.jsonl")], 0, 0).unwrap().0.len(), 2);
}

fn problem_at(path: &Path, words: usize) -> String {
    failure(&[path.to_path_buf()], words, 0).to_string()
}

#[test]
fn files_that_are_cut_short_or_damaged_are_named() {
    let c = Corpus::new();
    let long = (0..5000).map(|n| format!("{{\"id\": {n}, \"text\": \"Number {}.\"}}\n", n * n)).collect::<String>();
    for (name, whole) in [("x.jsonl.gz", gz(long.as_bytes())), ("x.jsonl.zst", zst(long.as_bytes()))] {
        for keep in [whole.len() / 2, whole.len() - 1, 12] {
            let said = problem(&c.file(name, &whole[..keep]));
            assert!(said.contains("the compressed file is cut short"), "{keep} of {name}: {said}");
        }
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle..middle + 40].fill(0xa5);
        let said = problem(&c.file(name, flipped));
        assert!(said.contains("damaged") || said.contains("cut short") || said.contains(name), "{said}");
    }
    for (name, whole) in [("x.parquet", parquet(&two_rows())), ("x.arrow", arrow_file(&two_rows()))] {
        for keep in [whole.len() / 2, whole.len() - 1, 10] {
            let said = problem(&c.file(name, &whole[..keep]));
            assert!(said.contains(name), "{keep} of {name}: {said}");
        }
    }
}

#[test]
fn files_that_are_no_corpus_are_refused_with_what_is_accepted() {
    let c = Corpus::new();
    for (name, content, part) in [
        ("x.jsonl", &[b'a', 0, 1][..], "this is a binary file"),
        ("x", b"some words\n", "neither the name nor the first bytes tell"),
        ("x.json", b" [{\"id\": 1}]", "one JSON array"),
        ("x.csv", b"id,text\n", "neither the name nor the first bytes tell"),
        ("x.txt", b"\xff\xfeh\0i\0", "UTF-16"),
        ("empty.jsonl", b"", "there is no text in it"),
        ("white.txt", b" \n", "there is no text in it"),
        ("x.parquet", b"not parquet at all", "cannot be read as Parquet"),
        ("x.arrow", b"not arrow at all, not at all", "cannot be read as Arrow"),
    ] {
        let said = problem(&c.file(name, content));
        assert!(said.contains(part), "{name}: {said}");
    }
    let said = problem(&c.path("missing.jsonl"));
    assert!(said.contains("missing.jsonl: there is no such file"), "{said}");
}

#[test]
fn tables_without_the_columns_say_which_they_have() {
    let c = Corpus::new();
    let text: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
    let table = RecordBatch::try_from_iter([("id", text.clone()), ("body", text.clone())]).unwrap();
    let said = problem(&c.file("x.parquet", parquet(&table)));
    assert!(said.contains("no column `text` (or `contents`): the columns are id, body"), "{said}");
    let number: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let table = RecordBatch::try_from_iter([("id", text), ("text", number)]).unwrap();
    let said = problem(&c.file("x.arrow", arrow_file(&table)));
    assert!(said.contains("column `text` is of Int64 where strings are expected"), "{said}");
    let ids: ArrayRef = Arc::new(StringArray::from(vec![Some("1"), None]));
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["x", "y"]));
    let said = problem(&c.file("y.arrow", arrow_file(&batch(ids, texts.clone(), texts))));
    assert!(said.contains("y.arrow:2: there is no id in this row"), "{said}");
}

#[test]
fn what_the_sink_says_stops_the_reading() {
    let c = Corpus::new();
    let path = c.file("x.jsonl", TWO);
    let mut seen = 0;
    let stopped = read(&[path], &CorpusOptions::default(), &mut |_| {
        seen += 1;
        Err(Error::request("enough", "no more"))
    });
    assert_eq!((seen, stopped.unwrap_err().to_string().as_str()), (1, "enough"));
}

const NAMES: [&str; 10] =
    ["x.jsonl", "x.tsv", "x.parquet", "x.arrow", "x.md", "x.txt", "x.html", "x.jsonl.gz", "x.tsv.zst", "x"];

const MAGICS: &[&[u8]] = &[b"", b"PAR1", b"ARROW1", b"ARROW1\0\0", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"{"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_bytes_never_panic(
        name in proptest::sample::select(&NAMES[..]),
        magic in proptest::sample::select(MAGICS),
        body in proptest::collection::vec(any::<u8>(), 0..300),
        end in proptest::sample::select(MAGICS),
    ) {
        let c = Corpus::new();
        let path = c.file(name, [magic, &body[..], end].concat());
        let _ = read_all(&[path], 10, 3);
    }

    #[test]
    fn flipped_bytes_in_tables_never_panic(
        which in 0usize..3, flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let rows = two_rows();
        let (name, mut bytes) = match which {
            0 => ("x.parquet", parquet(&rows)),
            1 => ("x.arrow", arrow_file(&rows)),
            _ => ("s.arrow", arrow_stream(&rows)),
        };
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let c = Corpus::new();
        let path = c.file(name, bytes);
        let _ = read_all(&[path], 10, 3);
    }
}
