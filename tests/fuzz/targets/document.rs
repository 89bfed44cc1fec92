//! PDF and Word files: passages with text and a page, or a sentence. The bytes are a whole PDF, or a part of a sound file: what a page
//! paints, what its font says the letters are, the text of a Word file, its styles.
#![no_main]

use std::io::{Cursor, Write};

use libfuzzer_sys::fuzz_target;
use nunatak::corpus::{CorpusOptions, read};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

const PAINTED: &[u8] = b"BT /F 12 Tf 50 700 Td (Ice is cold.) Tj ET";
const WRITTEN: &[u8] = b"<w:document><w:body><w:p><w:pPr><w:pStyle w:val=\"T\"/></w:pPr><w:r><w:t>Ice</w:t></w:r></w:p></w:body></w:document>";

fuzz_target!(|input: (u8, &[u8])| {
    nunatak_fuzz::only_uncaught_panics();
    let (kind, bytes) = input;
    let (ending, file) = match kind % 5 {
        0 => ("pdf", bytes.to_vec()),
        1 => ("pdf", pdf(bytes, None)),
        2 => ("pdf", pdf(PAINTED, Some(bytes))),
        3 => ("docx", docx(&[("word/document.xml", bytes)])),
        _ => ("docx", docx(&[("word/document.xml", WRITTEN), ("word/styles.xml", bytes)])),
    };
    let path = nunatak_fuzz::file(&format!("document.{ending}"), &file);
    let options = CorpusOptions { passage_words: 100, skip_bad: 0 };
    let mut passages = 0;
    let report = read(&[path], &options, &mut |passage| {
        passages += 1;
        assert!(!passage.text.trim().is_empty() && !passage.key.is_empty());
        assert!(passage.source.start <= passage.source.end);
        assert_eq!(passage.metadata.contains_key("page"), ending == "pdf");
        Ok(())
    });
    match report {
        Ok(report) => assert_eq!(report.passages, passages),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

/// A page that paints this in a font of one byte a letter, whose letters are what `unicode` says, if it is given.
fn pdf(painted: &[u8], unicode: Option<&[u8]>) -> Vec<u8> {
    let font = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding";
    let stream = |bytes: &[u8]| [format!("<< /Length {} >>\nstream\n", bytes.len()).as_bytes(), bytes, b"\nendstream"].concat();
    let mut objects = vec![
        b"<< /Type /Catalog /Pages 2 0 R >>".to_vec(),
        b"<< /Type /Pages /Kids [4 0 R] /Count 1 /MediaBox [0 0 600 800] >>".to_vec(),
        format!("{font} {} >>", if unicode.is_some() { "/ToUnicode 6 0 R" } else { "" }).into_bytes(),
        b"<< /Type /Page /Parent 2 0 R /Resources << /Font << /F 3 0 R >> >> /Contents 5 0 R >>".to_vec(),
        stream(painted),
    ];
    objects.extend(unicode.map(stream));
    let (mut file, mut places) = (b"%PDF-1.4\n".to_vec(), Vec::new());
    for (number, object) in (1..).zip(&objects) {
        places.push(file.len());
        file.extend([format!("{number} 0 obj\n").as_bytes(), object, b"\nendobj\n"].concat());
    }
    let (table, size) = (file.len(), objects.len() + 1);
    let rows: String = places.iter().map(|at| format!("{at:010} 00000 n \n")).collect();
    let trailer = format!("trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{table}\n%%EOF\n");
    file.extend(format!("xref\n0 {size}\n0000000000 65535 f \n{rows}{trailer}").into_bytes());
    file
}

/// A Word file of these parts.
fn docx(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in parts {
        zip.start_file(*name, SimpleFileOptions::default()).expect("memory");
        zip.write_all(bytes).expect("memory");
    }
    zip.finish().expect("memory").into_inner()
}
