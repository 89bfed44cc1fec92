//! PDF: the text as it stands on the pages, put together to paragraphs under headings.
//!
//! A PDF says where characters are painted, and nothing of words, lines or paragraphs. The library finds the characters; here they
//! become lines by their places, headings by the size of their letters, paragraphs by the space between lines. What recurs at the top
//! or bottom of pages, such as their numbers, and tables of contents are left out. Where text came from is counted in pages. Scanned pages are
//! pictures: a file without any text is refused, not taken for an empty one.

use std::collections::{BTreeMap, HashSet};

use pdf_extract::{Document, MediaBox, Object, OutputDev, OutputError, Transform, output_doc};

use super::document::Problem;
use super::outline::{Outline, one_line};

/// Letters so many times as large as most are a heading's.
const HEADING: f64 = 1.15;
/// The longest heading, in characters.
const LONGEST_HEADING: usize = 150;
/// A space between lines so many times as large as most parts paragraphs.
const PARAGRAPH: f64 = 1.35;
/// A line at the edge of more than this share of the pages is not of the text.
const FURNITURE: f64 = 0.5;
/// A line at the edge of fewer pages is.
const FEWEST_PAGES: usize = 3;

/// The outline of a PDF file, whose sources are pages, from 1.
pub(super) fn outline(bytes: &[u8]) -> Result<Outline, Problem> {
    let damaged = |error: &dyn std::fmt::Display| format!("the PDF is damaged ({error})");
    let mut document = Document::load_mem(bytes).map_err(|e| damaged(&e))?;
    if document.is_encrypted() {
        let locked = "the PDF is locked with a password: save it without one";
        document.decrypt("").map_err(|_| locked.to_owned())?;
    }
    let mut painted = Painted::default();
    output_doc(&document, &mut painted).map_err(|e| match painted.pages.last() {
        Some((page, _)) => format!("page {page} of the PDF is damaged ({e})"),
        None => damaged(&e),
    })?;
    let mut pages = painted.pages;
    for (_, lines) in &mut pages {
        lines.retain(|line| !line.text.trim().is_empty() && !is_of_contents(&line.text));
    }
    without_furniture(&mut pages);
    if pages.iter().all(|(_, lines)| lines.is_empty()) {
        return Err(
            "there is no text in the PDF: its pages may be scans, which need text recognition (OCR) first".into()
        );
    }
    let mut outline = Outline::new(0);
    outline.paged = true;
    write(&pages, title(&document), &mut outline);
    Ok(outline)
}

/// A line of a page.
#[derive(Debug, Default, Clone)]
struct Line {
    text: String,
    /// Height of most of its letters, in points.
    size: f64,
    /// How high it stands on the page.
    y: f64,
}

/// Characters as they are painted, collected in lines.
#[derive(Default)]
struct Painted {
    /// Pages by number.
    pages: Vec<(usize, Vec<Line>)>,
    /// Where the last character ended, and stood.
    end: (f64, f64),
    /// Whether the next character begins a piece that the file paints in one go.
    begins: bool,
}

impl OutputDev for Painted {
    fn begin_page(&mut self, page: u32, _: &MediaBox, _: Option<(f64, f64, f64, f64)>) -> Result<(), OutputError> {
        self.pages.push((page as usize, Vec::new()));
        Ok(())
    }

    fn end_page(&mut self) -> Result<(), OutputError> {
        Ok(())
    }

    fn output_character(
        &mut self,
        place: &Transform,
        width: f64,
        _spacing: f64,
        font_size: f64,
        text: &str,
    ) -> Result<(), OutputError> {
        let size = font_size * (place.m11 * place.m22 - place.m12 * place.m21).abs().sqrt();
        let (x, y) = (place.m31, place.m32);
        let (end, last_y) = self.end;
        let off = (y - last_y).abs();
        let Some((_, lines)) = self.pages.last_mut() else { return Ok(()) };
        if lines.is_empty() || self.begins && (off > 1.5 * size || off > 0.5 * size && x < end) {
            lines.push(Line { text: String::new(), size, y });
        } else if self.begins && x > end + 0.1 * size {
            self.push(" ");
        }
        self.push(text);
        self.begins = false;
        self.end = (x + width * size, y);
        Ok(())
    }

    fn begin_word(&mut self) -> Result<(), OutputError> {
        self.begins = true;
        Ok(())
    }

    fn end_word(&mut self) -> Result<(), OutputError> {
        Ok(())
    }

    fn end_line(&mut self) -> Result<(), OutputError> {
        Ok(())
    }
}

impl Painted {
    /// Add to the last line; ligatures become their letters, which words are searched by.
    fn push(&mut self, text: &str) {
        let Some(line) = self.pages.last_mut().and_then(|(_, lines)| lines.last_mut()) else { return };
        for c in text.chars() {
            match c {
                '\u{fb00}' => line.text.push_str("ff"),
                '\u{fb01}' => line.text.push_str("fi"),
                '\u{fb02}' => line.text.push_str("fl"),
                '\u{fb03}' => line.text.push_str("ffi"),
                '\u{fb04}' => line.text.push_str("ffl"),
                '\u{ad}' => {}
                c if c.is_whitespace() || c.is_control() => {
                    if !line.text.ends_with(' ') && !line.text.is_empty() {
                        line.text.push(' ');
                    }
                }
                c => line.text.push(c),
            }
        }
    }
}

/// Whether a line is of a table of contents: dots lead from what is there to the number of its page.
fn is_of_contents(line: &str) -> bool {
    let rest = line.trim_end().trim_end_matches(|c: char| c.is_alphanumeric()).trim_end();
    rest.ends_with("....") || rest.ends_with(". . . .")
}

/// Take away the first and last lines that recur, but for their digits: everywhere, if most pages have them; if fewer have
/// them, as the heads of chapters and the heads of tables, everywhere but where they are first.
fn without_furniture(pages: &mut [(usize, Vec<Line>)]) {
    let shape = |line: &Line| line.text.trim().chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    for last in [false, true] {
        let edge = |lines: &[Line]| if last { lines.last().map(shape) } else { lines.first().map(shape) };
        let mut count: BTreeMap<String, usize> = BTreeMap::new();
        for shape in pages.iter().filter_map(|(_, lines)| edge(lines)) {
            *count.entry(shape).or_default() += 1;
        }
        let most = FURNITURE * pages.len() as f64;
        count.retain(|_, n| *n >= FEWEST_PAGES);
        let mut seen = HashSet::new();
        for (_, lines) in pages.iter_mut() {
            let Some((shape, &n)) = edge(lines).and_then(|shape| count.get_key_value(&shape)) else { continue };
            if n as f64 > most || !seen.insert(shape) {
                lines.remove(if last { lines.len() - 1 } else { 0 });
            }
        }
    }
}

/// What the lines of a document have in common.
struct Layout {
    /// Height of most letters, and distance of most lines.
    body: f64,
    gap: f64,
    /// Heights of headings, in tenths of a point, the largest first.
    headings: Vec<i64>,
}

impl Layout {
    fn of(pages: &[(usize, Vec<Line>)]) -> Self {
        let lines = || pages.iter().flat_map(|(_, lines)| lines);
        let gaps = pages.iter().flat_map(|(_, lines)| lines.iter().zip(lines.iter().skip(1)).map(|(a, b)| a.y - b.y));
        let gap = most(gaps.filter(|&gap| gap > 0.0).map(|gap| (gap, 1)));
        let body = most(lines().map(|line| (line.size, line.text.len())));
        let large =
            |line: &&Line| body > 0.0 && line.size >= HEADING * body && line.text.chars().count() <= LONGEST_HEADING;
        let mut headings: Vec<i64> = lines().filter(large).map(|line| tenths(line.size)).collect();
        headings.sort_unstable_by(|a, b| b.cmp(a));
        headings.dedup();
        Self { body, gap, headings }
    }

    /// The level of a heading, from 1.
    fn level(&self, line: &Line) -> Option<u8> {
        let place = self.headings.iter().position(|&size| size == tenths(line.size))?;
        (line.text.chars().count() <= LONGEST_HEADING && self.body > 0.0).then_some(1 + place.min(5) as u8)
    }

    /// Whether a paragraph begins with `line`, which follows `above`.
    fn parts(&self, above: &Line, line: &Line, same_page: bool) -> bool {
        let apart = above.y - line.y;
        if same_page && apart > 0.0 {
            return apart > PARAGRAPH * self.gap;
        }
        // At the top of a page or column the space says nothing.
        above.text.trim_end().ends_with(['.', '!', '?', ':'])
    }
}

/// Write the lines of all pages as headings and paragraphs.
fn write(pages: &[(usize, Vec<Line>)], title: Option<String>, outline: &mut Outline) {
    let layout = Layout::of(pages);
    if layout.headings.is_empty() {
        outline.title = title;
    }
    let mut before: Option<(usize, &Line)> = None;
    let mut heading: Option<(u8, String)> = None;
    for (page, line) in pages.iter().flat_map(|(page, lines)| lines.iter().map(move |line| (*page, line))) {
        let (text, above) = (line.text.trim(), before.replace((page, line)));
        if let Some(level) = layout.level(line) {
            match &mut heading {
                // A heading of two lines.
                Some((same, words)) if *same == level && above.is_some_and(|(on, _)| on == page) => {
                    words.push(' ');
                    words.push_str(text);
                }
                _ => {
                    if let Some((level, words)) = heading.replace((level, text.to_owned())) {
                        outline.heading(level, &words);
                    }
                }
            }
            continue;
        }
        if let Some((level, words)) = heading.take() {
            outline.heading(level, &words);
        } else if let Some((on, above)) = above {
            if layout.parts(above, line, on == page) {
                outline.part("\n\n");
            } else if !outline.join_hyphen(text) {
                outline.part(" ");
            }
        }
        outline.push(text, page..page + 1);
    }
    if let Some((level, words)) = heading {
        outline.heading(level, &words);
    }
}

fn tenths(x: f64) -> i64 {
    (x * 10.0).round() as i64
}

/// The number, to a tenth, that has the most weight.
fn most(numbers: impl Iterator<Item = (f64, usize)>) -> f64 {
    let mut weights: BTreeMap<i64, usize> = BTreeMap::new();
    for (number, weight) in numbers.filter(|(number, _)| number.is_finite()) {
        *weights.entry(tenths(number)).or_default() += weight;
    }
    weights.into_iter().max_by_key(|&(_, weight)| weight).map_or(0.0, |(tenths, _)| tenths as f64 / 10.0)
}

/// The title that the file gives itself, unless a word processor gave it the name of a file.
fn title(document: &Document) -> Option<String> {
    let info = document.trailer.get(b"Info").and_then(Object::as_reference).ok()?;
    let title = document.get_dictionary(info).and_then(|info| info.get(b"Title")).ok()?;
    let title = pdf_extract::decode_text_string(title).ok()?;
    let title = one_line(&title);
    let name = title.to_lowercase();
    let of_file = name.starts_with("microsoft word - ")
        || [".doc", ".docx", ".tex", ".pdf", ".dvi"].iter().any(|e| name.ends_with(e));
    (!title.is_empty() && !of_file && name != "untitled").then_some(title)
}
