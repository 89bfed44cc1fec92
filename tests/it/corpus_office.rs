//! Corpora of PDF and Word files: made here by hand, so that what is in them is known to the byte.

use std::collections::HashMap;
use std::io::{Cursor, Write};
use std::path::Path;

use assert_cmd::Command;
use nunatak::corpus::{CorpusOptions, read};
use nunatak::types::Passage;
use proptest::prelude::*;
use serde_json::Value;
use zip::write::SimpleFileOptions;

/// A PDF whose pages paint these streams, in Helvetica as /F; with `more`, an object that the trailer names, and the name.
fn pdf(pages: &[String], more: Option<(&str, &str)>) -> Vec<u8> {
    let kids: Vec<String> = (0..pages.len()).map(|n| format!("{} 0 R", 4 + 2 * n)).collect();
    let mut objects = vec![
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        format!("<< /Type /Pages /Kids [{}] /Count {} /MediaBox [0 0 600 800] >>", kids.join(" "), pages.len()),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>".to_owned(),
    ];
    for (n, page) in pages.iter().enumerate() {
        let content = 5 + 2 * n;
        let resources = "<< /Font << /F 3 0 R >> >>";
        objects.push(format!("<< /Type /Page /Parent 2 0 R /Resources {resources} /Contents {content} 0 R >>"));
        objects.push(format!("<< /Length {} >>\nstream\n{page}\nendstream", page.len()));
    }
    let named = more.map(|(name, object)| {
        objects.push(object.to_owned());
        format!("/{name} {} 0 R", objects.len())
    });
    let (mut file, mut places) = (b"%PDF-1.4\n".to_vec(), Vec::new());
    for (n, object) in objects.iter().enumerate() {
        places.push(file.len());
        write!(file, "{} 0 obj\n{object}\nendobj\n", n + 1).unwrap();
    }
    let table = file.len();
    write!(file, "xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1).unwrap();
    places.iter().for_each(|at| writeln!(file, "{at:010} 00000 n ").unwrap());
    let (size, named) = (objects.len() + 1, named.unwrap_or_default());
    let id = "/ID [(0000000000000000) (0000000000000000)]";
    write!(file, "trailer\n<< /Size {size} /Root 1 0 R {id} {named} >>\nstartxref\n{table}\n%%EOF\n").unwrap();
    file
}

/// Text of `size` points at a height of the page.
fn line(size: u32, y: u32, text: &str) -> String {
    format!("BT /F {size} Tf 1 0 0 1 50 {y} Tm ({text}) Tj ET\n")
}

/// A page between a running head and its number.
fn page(number: usize, lines: &[String]) -> String {
    format!("{}{}{}", line(9, 770, &format!("Field guide {number}")), lines.concat(), line(9, 30, &number.to_string()))
}

fn guide() -> Vec<u8> {
    let pages = [
        page(
            1,
            &[
                line(24, 700, "Glaciers"),
                line(18, 660, "Moulins"),
                line(12, 640, "A moulin is a shaft. Melt-"),
                line(12, 626, "water falls into it \\(deep\\)."),
                line(12, 596, "It is cold."),
                line(12, 582, "The shaft goes"),
            ],
        ),
        page(
            2,
            &[
                line(12, 700, "to the bed."),
                line(18, 660, "Crevasses are open"),
                line(18, 640, "cracks"),
                line(12, 620, "They are deep."),
            ],
        ),
        page(3, &[line(12, 700, "Ropes help."), line(12, 680, "Index . . . . . . . . . . 12")]),
    ];
    pdf(&pages, None)
}

/// A Word file of these parts.
fn docx(parts: &[(&str, &str)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, text) in parts {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(text.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

const BODY: &str = r#"<?xml version="1.0"?><w:document xmlns:w="w" xmlns:mc="mc"><w:body>
<w:p><w:pPr><w:pStyle w:val="Titel"/></w:pPr><w:r><w:t>Ice &amp; snow</w:t></w:r></w:p>
<w:p><w:pPr><w:pStyle w:val="berschrift1"/></w:pPr><w:r><w:t>1.</w:t><w:tab/><w:t>Kinds</w:t></w:r></w:p>
<w:p><w:r><w:t xml:space="preserve">Firn is </w:t></w:r><w:r><w:t>old &#x73;now.</w:t></w:r>
<w:del><w:r><w:delText>No.</w:delText></w:r></w:del><w:moveFrom><w:r><w:t>Moved.</w:t></w:r></w:moveFrom><w:ins><w:r><w:t xml:space="preserve"> It is hard.</w:t></w:r></w:ins>
<mc:AlternateContent><mc:Choice><w:txbxContent><w:p><w:r><w:t>Boxed.</w:t></w:r></w:p></w:txbxContent></mc:Choice>
<mc:Fallback><w:txbxContent><w:p><w:r><w:t>Boxed.</w:t></w:r></w:p></w:txbxContent></mc:Fallback></mc:AlternateContent></w:p>
<w:p><w:pPr><w:numPr><w:ilvl w:val="0"/></w:numPr></w:pPr><w:r><w:t>first</w:t></w:r></w:p>
<w:p><w:pPr><w:numPr><w:ilvl w:val="0"/></w:numPr></w:pPr><w:r><w:t>second</w:t></w:r></w:p>
<w:p><w:pPr><w:pStyle w:val="berschrift2"/></w:pPr><w:r><w:t>Numbers</w:t></w:r></w:p>
<w:tbl><w:tr><w:tc><w:p><w:r><w:t>density</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>917</w:t></w:r></w:p></w:tc></w:tr>
<w:tr><w:tc><w:p><w:r><w:t>colour</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>blue</w:t></w:r></w:p></w:tc></w:tr></w:tbl>
</w:body></w:document>"#;

const STYLES: &str = r#"<w:styles xmlns:w="w"><w:style w:styleId="Titel"><w:name w:val="Title"/></w:style>
<w:style w:styleId="berschrift1"><w:name w:val="heading 1"/></w:style>
<w:style w:styleId="berschrift2"><w:name w:val="heading 2"/></w:style></w:styles>"#;

const NOTES: &str = r#"<w:footnotes xmlns:w="w"><w:footnote w:type="separator" w:id="-1"><w:p><w:r><w:t>no</w:t></w:r></w:p></w:footnote>
<w:footnote w:id="2"><w:p><w:r><w:t>At 0 degrees.</w:t></w:r></w:p></w:footnote></w:footnotes>"#;

fn parts() -> Vec<(&'static str, &'static str)> {
    vec![("word/document.xml", BODY), ("word/styles.xml", STYLES), ("word/footnotes.xml", NOTES)]
}

fn read_file(name: &str, bytes: &[u8]) -> Result<Vec<Passage>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let mut passages = Vec::new();
    let mut sink = |passage| {
        passages.push(passage);
        Ok(())
    };
    read(&[path], &CorpusOptions { passage_words: 0, skip_bad: 0 }, &mut sink).map_err(|e| e.to_string())?;
    Ok(passages)
}

#[test]
fn pages_become_paragraphs_under_headings_and_know_their_numbers() {
    let found = read_file("guide.pdf", &guide()).unwrap();
    let rows: Vec<_> = found.iter().map(|p| (p.title.as_str(), p.text.as_str(), p.metadata["page"].clone())).collect();
    assert_eq!(rows[0].0, "Glaciers > Moulins");
    assert_eq!(
        rows[0].1,
        "A moulin is a shaft. Meltwater falls into it (deep).\n\nIt is cold. The shaft goes to the bed."
    );
    assert_eq!(rows[1].0, "Glaciers > Crevasses are open cracks");
    assert_eq!(rows[1].1, "They are deep.\n\nRopes help.");
    assert_eq!((rows.len(), &rows[0].2, &rows[1].2), (2, &1.into(), &2.into()));
    assert_eq!(found[0].key, "guide.pdf#1");
    let spans: Vec<_> = found.iter().map(|p| (p.source.start, p.source.end)).collect();
    assert_eq!(spans, [(1, 3), (2, 4)], "pages 1 to 2, and 2 to 3");
    // Whatever it is called.
    assert_eq!(read_file("guide", &guide()).unwrap().len(), 2);
}

#[test]
fn a_pdf_without_headings_has_the_title_it_gives_itself_or_its_name() {
    let text = [line(12, 700, "Only text.")];
    let of = |title: &str| {
        let info = format!("<< /Title ({title}) >>");
        read_file("name.pdf", &pdf(&text, Some(("Info", &info)))).unwrap()[0].title.clone()
    };
    assert_eq!(of("On  ice"), "On ice");
    for no_title in ["", "Untitled", "Microsoft Word - draft.doc", "thesis.tex"] {
        assert_eq!(of(no_title), "name");
    }
    assert_eq!(read_file("name.pdf", &pdf(&text, None)).unwrap()[0].title, "name");
}

#[test]
fn word_files_become_paragraphs_under_headings() {
    let found = read_file("ice.docx", &docx(&parts())).unwrap();
    let rows: Vec<_> = found.iter().map(|p| (p.title.as_str(), p.text.as_str())).collect();
    assert_eq!(rows[0], ("Ice & snow > 1. Kinds", "Firn is old snow. It is hard.\n\nBoxed.\n\n- first\n- second"));
    assert_eq!(rows[1], ("Ice & snow > 1. Kinds > Numbers", "density 917\ncolour blue\n\nAt 0 degrees."));
    assert_eq!(rows.len(), 2);
    let span = &found[0].source;
    let from = &BODY[span.start as usize..span.end as usize];
    assert!(from.starts_with("Firn is ") && from.ends_with("second"), "{from}");
    // A note stands elsewhere, and what it belongs to is where it is.
    let span = &found[1].source;
    let from = &BODY[span.start as usize..span.end as usize];
    assert!(from.starts_with("density") && from.ends_with("blue"), "{from}");
    // Without styles and notes it is one section, named by its properties or its file.
    let core = (
        "docProps/core.xml",
        "<cp:coreProperties xmlns:dc='dc'><dc:title>Cold &lt;things&gt;</dc:title></cp:coreProperties>",
    );
    let plain = read_file("ice.docx", &docx(&[("word/document.xml", BODY), core])).unwrap();
    assert_eq!((plain.len(), plain[0].title.as_str()), (1, "Cold <things>"));
    assert_eq!(read_file("ice.docx", &docx(&[("word/document.xml", BODY)])).unwrap()[0].title, "ice");
}

#[test]
fn what_cannot_be_read_says_why() {
    let says = |name: &str, bytes: &[u8], words: &str| {
        let error = read_file(name, bytes).unwrap_err();
        assert!(error.contains(name) && error.contains(words), "{error}");
    };
    let guide = guide();
    says("cut.pdf", &guide[..guide.len() / 2], "the PDF is damaged");
    says("scan.pdf", &pdf(&["q 100 0 0 100 0 0 cm Q".into()], None), "text recognition (OCR)");
    let key = "00000000000000000000000000000000";
    let locked = format!("<< /Filter /Standard /V 1 /R 2 /O ({key}) /U ({key}) /P -4 >>");
    says("locked.pdf", &pdf(&[line(12, 700, "Secret.")], Some(("Encrypt", &locked))), "locked with a password");
    let whole = docx(&parts());
    says("cut.docx", &whole[..whole.len() / 2], "damaged");
    says("sheet.docx", &docx(&[("xl/workbook.xml", "<x/>")]), "no word/document.xml");
    says("bad.docx", &docx(&[("word/document.xml", "<w:p></w:t>")]), "the XML in the .docx file is damaged");
    says("old.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0\0", "old word processor");
}

#[test]
fn an_answer_from_a_pdf_names_its_page() {
    let folder = tempfile::tempdir().unwrap();
    let (file, index) = (folder.path().join("guide.pdf"), folder.path().join("index"));
    std::fs::write(&file, guide()).unwrap();
    let nunatak = || Command::cargo_bin("nunatak").unwrap();
    nunatak()
        .args(["index", "build", "--no-dense", "--corpus"])
        .arg(&file)
        .arg("--index")
        .arg(&index)
        .assert()
        .success();
    let ask = |words: &[&str]| {
        let mut command = nunatak();
        command
            .args(["ask", "What helps at crevasses?", "--rerank", "none", "--grounded", "--index"])
            .arg(&index)
            .args(words);
        String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
    };
    let answer: Value = serde_json::from_str(&ask(&["--json"])).unwrap();
    let evidence = &answer["evidence"][0];
    let pages = HashMap::from([("guide.pdf#1", 1), ("guide.pdf#2", 2)]);
    assert_eq!(evidence["page"], pages[evidence["passage_id"].as_str().unwrap()]);
    assert!(ask(&[]).contains(&format!(", page {}, bytes ", evidence["page"])));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Damage is an error or other text, and no panic.
    #[test]
    fn flipped_bytes_never_panic(
        word in any::<bool>(), flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let (name, mut bytes) = if word { ("x.docx", docx(&parts())) } else { ("x.pdf", guide()) };
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(passages) = read_file(name, &bytes) {
            prop_assert!(passages.iter().all(|p| !p.text.trim().is_empty() && Path::new(&p.source.file) == Path::new(name)));
        }
    }
}
