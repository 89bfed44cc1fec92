//! A document as its headings cut it: what the readers of document formats write to.

use std::ops::Range;

/// A part of a document under one heading: its title and text, and where the text stands in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Section {
    /// Title of the document, then the headings that the section is under: `Guide > Install > Linux`.
    pub title: String,
    /// Its text.
    pub text: String,
    /// Whether sources are counted in pages, and not in bytes.
    pub paged: bool,
    /// Where it comes from, in order of the text. What lies between stretches was put in to part words.
    stretches: Vec<Stretch>,
}

/// A stretch of the text and the bytes of the file that it was made from. Of the same length they are the same
/// bytes; otherwise (an entity, an escape, markup within) the whole of one stands for the whole of the other.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stretch {
    text: Range<usize>,
    source: Range<usize>,
}

impl Section {
    fn push(&mut self, text: &str, source: Range<usize>) {
        let at = self.text.len();
        self.text.push_str(text);
        let same = text.len() == source.len();
        if let Some(last) = self.stretches.last_mut()
            && same
            && last.text.len() == last.source.len()
            && (last.text.end, last.source.end) == (at, source.start)
        {
            last.text.end = self.text.len();
            last.source.end = source.end;
            return;
        }
        self.stretches.push(Stretch { text: at..self.text.len(), source });
    }

    /// The bytes of the file that enclose where `range` of the text came from.
    pub fn source(&self, range: &Range<usize>) -> Range<usize> {
        let first = self.stretches.partition_point(|s| s.text.end <= range.start);
        let mut found: Option<Range<usize>> = None;
        let within = self.stretches.iter().skip(first).take_while(|s| s.text.start < range.end);
        // What has no place itself, as a note of a Word file, says nothing of where the rest stands.
        for s in within.filter(|s| !s.source.is_empty()) {
            let mut source = s.source.clone();
            if s.text.len() == s.source.len() {
                source.end = s.source.start + (range.end.min(s.text.end) - s.text.start);
                source.start += range.start.max(s.text.start) - s.text.start;
            }
            found = Some(match found {
                Some(f) => f.start.min(source.start)..f.end.max(source.end),
                None => source,
            });
        }
        found.unwrap_or_default()
    }
}

/// Text on one line, with one space between words.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Collects text under headings.
#[derive(Debug, Default)]
pub(super) struct Outline {
    /// What is added to every offset: the length of the byte order mark.
    base: usize,
    /// What the document says that its title is.
    pub title: Option<String>,
    /// Whether sources are counted in pages, and not in bytes.
    pub paged: bool,
    /// The headings above the current section, with their levels.
    path: Vec<(u8, String)>,
    current: Section,
    /// Whether a bullet was written last, which the item's first paragraph follows on the same line.
    led: bool,
    sections: Vec<(Vec<String>, Section)>,
    first_heading: Option<String>,
}

impl Outline {
    /// An empty document whose offsets are `base` less than the file's.
    pub fn new(base: usize) -> Self {
        Self { base, ..Self::default() }
    }

    /// Append `text`, made from the bytes `source`.
    pub fn push(&mut self, text: &str, source: Range<usize>) {
        if !text.is_empty() {
            if std::mem::take(&mut self.led) {
                self.current.text.push(' ');
            }
            self.current.push(text, source.start + self.base..source.end + self.base);
        }
    }

    /// Append the bullet or number of a list item.
    pub fn lead(&mut self, mark: &str, source: Range<usize>) {
        self.push(mark, source);
        self.led = true;
    }

    /// A list item ends.
    pub fn end_item(&mut self) {
        self.led = false;
    }

    /// Part what follows from what is there, by `by`: a space, a line end, or two for a paragraph.
    pub fn part(&mut self, by: &str) {
        let text = &mut self.current.text;
        if self.led || text.is_empty() || text.ends_with(by) {
            return;
        }
        if by == "\n\n" && text.ends_with('\n') {
            text.push('\n');
        } else if by != " " || !text.ends_with(char::is_whitespace) {
            text.push_str(by);
        }
    }

    /// Take away the hyphen that the text ends with, if it only parts a word that goes on with `next`; whether it did.
    pub fn join_hyphen(&mut self, next: &str) -> bool {
        let Section { text, stretches, .. } = &mut self.current;
        let word = text.strip_suffix('-').is_some_and(|before| before.ends_with(char::is_alphabetic));
        if !word || !next.starts_with(char::is_lowercase) {
            return false;
        }
        text.pop();
        if let Some(last) = stretches.last_mut() {
            last.text.end = text.len();
        }
        true
    }

    /// A heading of `level` (1 is the highest): a section ends, and one begins.
    pub fn heading(&mut self, level: u8, text: &str) {
        let text = one_line(text);
        self.end_section();
        self.led = false;
        self.path.retain(|(above, _)| *above < level);
        if text.is_empty() {
            return;
        }
        if self.first_heading.is_none() {
            self.first_heading = Some(text.clone());
        }
        self.path.push((level, text));
    }

    fn end_section(&mut self) {
        let section = std::mem::take(&mut self.current);
        if !section.text.trim().is_empty() {
            self.sections.push((self.path.iter().map(|(_, heading)| heading.clone()).collect(), section));
        }
    }

    /// The sections that have text. A document without a title of its own takes its first heading's, or `stem`.
    pub fn finish(mut self, stem: &str) -> Vec<Section> {
        self.end_section();
        let title = self.title.filter(|t| !t.is_empty()).or(self.first_heading).unwrap_or_else(|| stem.to_string());
        let titled = |(path, section): (Vec<String>, Section)| {
            // The first heading mostly repeats the title: "Install" in "Install - Guide".
            let repeated = path.first().is_some_and(|heading| title.contains(heading.as_str()));
            let mut parts = vec![title.clone()];
            parts.extend(path.into_iter().skip(usize::from(repeated)));
            Section { title: parts.join(" > "), paged: self.paged, ..section }
        };
        self.sections.into_iter().map(titled).collect()
    }
}
