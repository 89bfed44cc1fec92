//! Word files (.docx, Office Open XML, ECMA-376): paragraphs under headings, lists, tables, and the notes at their end.
//!
//! The file is a zip of XML. Headings are paragraphs whose style is named `heading 1` to `heading 9`, or `Title`, whatever language the
//! word processor speaks; what was deleted under review is not read, and what was inserted is. Where text came from counts in bytes of
//! `word/document.xml`.

use std::collections::HashMap;
use std::io::{Cursor, Read};

use quick_xml::events::{BytesRef, BytesStart, Event};
use quick_xml::{Reader, XmlVersion};
use zip::ZipArchive;

use super::document::Problem;
use super::open::LARGEST_DOCUMENT;
use super::outline::{Outline, one_line};

type Archive<'a> = ZipArchive<Cursor<&'a [u8]>>;

/// The outline of a Word file.
pub(super) fn outline(bytes: &[u8]) -> Result<Outline, Problem> {
    let mut archive =
        ZipArchive::new(Cursor::new(bytes)).map_err(|e| format!("this is no .docx file, or it is damaged ({e})"))?;
    let body = part(&mut archive, "word/document.xml")?
        .ok_or("this is a zip file, but there is no word/document.xml in it: it is no .docx file")?;
    let styles = match part(&mut archive, "word/styles.xml")? {
        Some(xml) => styles(&xml)?,
        None => HashMap::new(),
    };
    let mut outline = Outline::new(0);
    outline.title = match part(&mut archive, "docProps/core.xml")? {
        Some(xml) => title(&xml)?,
        None => None,
    };
    write(&body, &styles, true, &mut outline)?;
    for notes in ["word/footnotes.xml", "word/endnotes.xml"] {
        if let Some(xml) = part(&mut archive, notes)? {
            outline.part("\n\n");
            write(&xml, &styles, false, &mut outline)?;
        }
    }
    Ok(outline)
}

/// A part of the file, if there is one of that name.
fn part(archive: &mut Archive, name: &str) -> Result<Option<String>, Problem> {
    if archive.index_for_name(name).is_none() {
        return Ok(None);
    }
    let damaged = |e: &dyn std::fmt::Display| format!("{name} in the .docx file is damaged ({e})");
    let file = archive.by_name(name).map_err(|e| damaged(&e))?;
    let mut text = String::new();
    file.take(LARGEST_DOCUMENT as u64 + 1).read_to_string(&mut text).map_err(|e| damaged(&e))?;
    if text.len() > LARGEST_DOCUMENT {
        return Err(format!("{name} in the .docx file has more than {} MiB", LARGEST_DOCUMENT >> 20));
    }
    Ok(Some(text))
}

/// The name of an element without its prefix, which the file chooses.
fn local<'a>(element: &'a BytesStart) -> &'a str {
    element.name().local_name().into_inner()
}

/// The value of `w:val`, or of another attribute.
fn attribute(element: &BytesStart, name: &str) -> Option<String> {
    let found = element.attributes().flatten().find(|a| a.key.local_name().as_ref() == name)?;
    found.normalized_value(XmlVersion::Implicit1_0).ok().map(|value| value.into_owned())
}

fn broken(error: quick_xml::Error) -> Problem {
    format!("the XML in the .docx file is damaged ({error})")
}

/// Levels of the heading styles, by the names that paragraphs know them by: 0 is the title's.
fn styles(xml: &str) -> Result<HashMap<String, u8>, Problem> {
    let (mut reader, mut found, mut id) = (Reader::from_str(xml), HashMap::new(), None);
    loop {
        match reader.read_event().map_err(broken)? {
            Event::Start(e) | Event::Empty(e) => match local(&e) {
                "style" => id = attribute(&e, "styleId"),
                "name" => {
                    if let (Some(id), Some(level)) = (id.take(), attribute(&e, "val").as_deref().and_then(level)) {
                        found.insert(id, level);
                    }
                }
                _ => {}
            },
            Event::Eof => return Ok(found),
            _ => {}
        }
    }
}

/// The level of the style of this name. Built-in styles have English names in every file.
fn level(name: &str) -> Option<u8> {
    let name = name.to_ascii_lowercase();
    match name.strip_prefix("heading") {
        Some(number) => number.trim().parse().ok().filter(|level| (1..=9).contains(level)),
        None => (name == "title").then_some(0),
    }
}

/// `dc:title` of the file's properties.
fn title(xml: &str) -> Result<Option<String>, Problem> {
    let (mut reader, mut inside, mut title) = (Reader::from_str(xml), false, String::new());
    loop {
        match reader.read_event().map_err(broken)? {
            Event::Start(e) if local(&e) == "title" => inside = true,
            Event::End(e) if e.local_name().as_ref() == "title" => inside = false,
            Event::Text(text) if inside => title.push_str(&text.xml10_content()),
            Event::GeneralRef(entity) if inside => title.extend(resolved(&entity)),
            Event::Eof => {
                let title = one_line(&title);
                return Ok(Some(title).filter(|t| !t.is_empty()));
            }
            _ => {}
        }
    }
}

/// The character of an entity.
fn resolved(entity: &BytesRef) -> Option<char> {
    if let Ok(Some(c)) = entity.resolve_char_ref() {
        return Some(c);
    }
    match &**entity {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => None,
    }
}

/// A paragraph as it is read.
#[derive(Default)]
struct Paragraph {
    level: Option<u8>,
    /// Whether it is an item of a list.
    listed: bool,
    heading: String,
    begun: bool,
}

/// Write the paragraphs of a part; where they stand is known for the document itself (`placed`) alone.
fn write(xml: &str, styles: &HashMap<String, u8>, placed: bool, outline: &mut Outline) -> Result<(), Problem> {
    let mut reader = Reader::from_str(xml);
    // A paragraph can hold a frame with paragraphs of its own.
    let mut open: Vec<Paragraph> = Vec::new();
    let (mut reads, mut cells, mut unread) = (false, 0usize, 0usize);
    let mut after_item = false;
    loop {
        let from = reader.buffer_position() as usize;
        let event = reader.read_event().map_err(broken)?;
        let source = if placed { from..reader.buffer_position() as usize } else { 0..0 };
        let mut say = |text: &str, open: &mut [Paragraph]| {
            let Some(paragraph) = open.last_mut() else { return };
            let first = !std::mem::replace(&mut paragraph.begun, true);
            if paragraph.level.is_some() {
                return paragraph.heading.push_str(text);
            }
            if first {
                let item_before = std::mem::replace(&mut after_item, paragraph.listed);
                outline.part(match paragraph.listed && item_before {
                    _ if cells > 0 => " ",
                    true => "\n",
                    false => "\n\n",
                });
                if paragraph.listed {
                    outline.lead("-", source.clone());
                }
            }
            outline.push(text, source.clone());
        };
        let begun = open.last().is_some_and(|paragraph| paragraph.begun);
        match event {
            Event::Start(e) => match local(&e) {
                // The same again for old programs, what was moved elsewhere under review, and the lines that part notes from the page.
                "Fallback" | "moveFrom" => unread += 1,
                "footnote" | "endnote" if attribute(&e, "type").is_some() => unread += 1,
                _ if unread > 0 => {}
                "p" => open.push(Paragraph::default()),
                "tbl" => outline.part("\n\n"),
                "t" => reads = true,
                "tc" => cells += 1,
                "numPr" => open.last_mut().into_iter().for_each(|paragraph| paragraph.listed = true),
                _ => {}
            },
            Event::Empty(e) if unread == 0 => match local(&e) {
                "pStyle" => {
                    let level = attribute(&e, "val").and_then(|id| styles.get(&id).copied());
                    open.last_mut().into_iter().for_each(|paragraph| paragraph.level = level);
                }
                "tab" if begun => say(" ", &mut open),
                "br" | "cr" if begun => say("\n", &mut open),
                "noBreakHyphen" => say("-", &mut open),
                _ => {}
            },
            Event::Text(text) if reads && unread == 0 => say(&text.xml10_content(), &mut open),
            Event::CData(text) if reads && unread == 0 => say(&text, &mut open),
            Event::GeneralRef(entity) if reads && unread == 0 => {
                if let Some(c) = resolved(&entity) {
                    say(c.encode_utf8(&mut [0; 4]), &mut open);
                }
            }
            Event::End(e) => match e.name().local_name().into_inner() {
                "Fallback" | "moveFrom" | "footnote" | "endnote" => unread = unread.saturating_sub(1),
                _ if unread > 0 => {}
                "t" => reads = false,
                "p" => {
                    end(open.pop().unwrap_or_default(), outline);
                    if !open.is_empty() {
                        outline.part("\n\n");
                    }
                }
                "tc" => cells = cells.saturating_sub(1),
                "tr" => outline.part("\n"),
                "tbl" => outline.part("\n\n"),
                _ => {}
            },
            Event::Eof => return Ok(()),
            _ => {}
        }
    }
}

/// The end of a paragraph.
fn end(paragraph: Paragraph, outline: &mut Outline) {
    match paragraph.level {
        Some(0) => {
            let title = one_line(&paragraph.heading);
            if !title.is_empty() {
                outline.title = Some(title);
            }
        }
        Some(level) => outline.heading(level, &paragraph.heading),
        None => outline.end_item(),
    }
}
