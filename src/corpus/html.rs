//! HTML: what a reader of the page sees, as paragraphs under its headings.
//!
//! It is made from the standard's tokens without building a tree: for text, an unclosed tag here and there does
//! not matter, and a page of megabytes costs no more than its text.

use std::ops::Range;

use html5gum::emitters::callback::{CallbackEmitter, CallbackEvent};
use html5gum::{Span, Tokenizer};

use super::outline::{Outline, one_line};

/// Elements whose content is not for reading.
const UNREAD: &[&[u8]] =
    &[b"script", b"style", b"nav", b"noscript", b"template", b"svg", b"iframe", b"select", b"object"];

/// Elements that stand on lines of their own.
const BLOCKS: &[&[u8]] = &[
    b"address",
    b"article",
    b"aside",
    b"blockquote",
    b"body",
    b"center",
    b"dd",
    b"details",
    b"dialog",
    b"div",
    b"dl",
    b"dt",
    b"fieldset",
    b"figcaption",
    b"figure",
    b"footer",
    b"form",
    b"header",
    b"hr",
    b"main",
    b"ol",
    b"p",
    b"pre",
    b"section",
    b"summary",
    b"table",
    b"ul",
];

/// Write the page `source` to `outline`.
pub(super) fn outline(source: &str, outline: &mut Outline) {
    fragment(source, 0, outline);
}

/// Write a piece of HTML that stands at `base` of the document to `outline`.
pub(super) fn fragment(source: &str, base: usize, outline: &mut Outline) {
    let mut page = Page { source, base, outline, unread: None, pre: 0, aside: None, in_svg_tag: false };
    let mut emitter = CallbackEmitter::new(|event: CallbackEvent<'_>, span: Span<usize>| -> Option<()> {
        match event {
            CallbackEvent::OpenStartTag { name } => page.open(name),
            // Of what is not read only this one can be empty by its own tag.
            CallbackEvent::CloseStartTag { self_closing: true } if page.in_svg_tag => page.close(b"svg"),
            CallbackEvent::EndTag { name } => page.close(name),
            CallbackEvent::String { value } => page.text(&String::from_utf8_lossy(value), span.start..span.end),
            _ => {}
        }
        None
    });
    emitter.naively_switch_states(true);
    // Reading a string cannot fail, and every event was taken by the callback.
    for _ in Tokenizer::new_with_emitter(source, emitter) {}
    page.end_aside();
}

/// Where in the page the tokens are.
struct Page<'a> {
    source: &'a str,
    base: usize,
    outline: &'a mut Outline,
    /// The element that is not read, and how many of its name are open.
    unread: Option<(Vec<u8>, usize)>,
    /// Whether the start tag that is being read is that of an `svg`.
    in_svg_tag: bool,
    /// How many `pre` are open.
    pre: usize,
    /// The text of an open `title` (level 0) or heading.
    aside: Option<(u8, String)>,
}

impl Page<'_> {
    fn open(&mut self, name: &[u8]) {
        self.in_svg_tag = name == b"svg";
        if let Some((unread, depth)) = &mut self.unread {
            *depth += usize::from(unread == name);
            return;
        }
        if UNREAD.contains(&name) {
            self.unread = Some((name.to_vec(), 1));
        } else if let Some(level) = heading_level(name) {
            self.end_aside();
            self.outline.part("\n\n");
            self.aside = Some((level, String::new()));
        } else if name == b"pre" {
            self.pre += 1;
        }
        self.part(name);
    }

    fn close(&mut self, name: &[u8]) {
        if let Some((unread, depth)) = &mut self.unread {
            *depth -= usize::from(unread == name);
            if *depth == 0 {
                self.unread = None;
            }
            return;
        }
        if heading_level(name).is_some() {
            self.end_aside();
        } else if name == b"pre" {
            self.pre = self.pre.saturating_sub(1);
        }
        self.part(name);
    }

    /// Part what is before the tag from what is after it, as the element does on a screen.
    fn part(&mut self, name: &[u8]) {
        let by = match name {
            b"br" | b"li" | b"tr" => "\n",
            b"td" | b"th" | b"option" => " ",
            _ if BLOCKS.contains(&name) => "\n\n",
            _ => return,
        };
        match &mut self.aside {
            // A heading that nobody closed ends with the next paragraph.
            Some(_) if by == "\n\n" => self.end_aside(),
            Some((_, aside)) => aside.push(' '),
            None => self.outline.part(by),
        }
    }

    fn end_aside(&mut self) {
        match self.aside.take() {
            Some((0, title)) => {
                let title = one_line(&title);
                self.outline.title.get_or_insert(title);
            }
            Some((level, text)) => self.outline.heading(level, &text),
            None => {}
        }
    }

    fn text(&mut self, value: &str, span: Range<usize>) {
        if self.unread.is_some() {
            return;
        }
        if let Some((_, aside)) = &mut self.aside {
            aside.push_str(value);
            return;
        }
        let same = self.source.get(span.clone()) == Some(value);
        let at = self.base + span.start;
        match (self.pre > 0, same) {
            (true, _) => self.outline.push(value, at..self.base + span.end),
            (false, true) => {
                // Runs of white space are one space on the screen; the words keep their bytes.
                let mut offset = 0;
                for piece in value.split_inclusive(char::is_whitespace) {
                    let word = piece.trim_end();
                    self.outline.push(word, at + offset..at + offset + word.len());
                    offset += piece.len();
                    if piece.ends_with(' ') && !word.is_empty() {
                        self.outline.push(" ", at + offset - 1..at + offset);
                    } else if piece.len() > word.len() {
                        self.outline.part(" ");
                    }
                }
            }
            (false, false) => {
                if value.starts_with(char::is_whitespace) {
                    self.outline.part(" ");
                }
                let collapsed = one_line(value);
                self.outline.push(&collapsed, at..self.base + span.end);
                if value.ends_with(char::is_whitespace) {
                    self.outline.part(" ");
                }
            }
        }
    }
}

/// 1 to 6 for a heading, 0 for the title of the page.
fn heading_level(name: &[u8]) -> Option<u8> {
    match name {
        b"title" => Some(0),
        [b'h', digit @ b'1'..=b'6'] => Some(digit - b'0'),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: &str = "<!DOCTYPE html><html><head><title>Ice &amp; snow</title><style>p { color: red }</style>\
        <script>if (a < b) { alert('<p>no</p>') }</script></head><body><nav><ul><li>Menu</ul></nav>\
        <h1>Ice</h1><p>Ice is\n   <b>hard</b>&nbsp;and cold.<p>It melts.</p>\
        <h2>Kinds</h2><ul><li>firn<li>n&eacute;v&eacute;</ul><pre>a\n  b</pre>\
        <table><tr><td>1<td>2<tr><td>3</table></body></html>";

    fn page(source: &str) -> Vec<super::super::outline::Section> {
        let mut o = Outline::new(0);
        outline(source, &mut o);
        o.finish("stem")
    }

    #[test]
    fn a_picture_that_is_empty_takes_nothing_with_it() {
        for icon in
            ["<svg/>", "<svg class=\"icon\"/>", "<svg><path d=\"M0\"/><svg/></svg>", "<svg><text>no</text></svg>"]
        {
            let sections = page(&format!("<p>Before</p>{icon}<p>Behind</p>"));
            assert_eq!((sections.len(), sections[0].text.trim_end()), (1, "Before\n\nBehind"), "{icon}");
        }
    }

    #[test]
    fn what_a_reader_sees_is_kept() {
        let found: Vec<_> = page(PAGE).into_iter().map(|s| (s.title, s.text.trim().to_string())).collect();
        assert_eq!(found[0].0, "Ice & snow");
        assert_eq!(found[0].1, "Ice is hard and cold.\n\nIt melts.");
        assert_eq!(found[1].0, "Ice & snow > Kinds");
        assert_eq!(found[1].1, "firn\nnévé\n\na\n  b\n\n1 2\n3");
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn words_know_their_bytes() {
        let found = page(PAGE);
        let (section, word) = (&found[0], "melts");
        let at = section.text.find(word).unwrap();
        assert_eq!(&PAGE[section.source(&(at..at + word.len()))], word);
        let at = section.text.find("Ice is hard").unwrap();
        assert_eq!(&PAGE[section.source(&(at..at + 11))], "Ice is\n   <b>hard");
        let at = found[1].text.find("névé").unwrap();
        assert_eq!(&PAGE[found[1].source(&(at..at + 3))], "n&eacute;v&eacute;");
    }

    #[test]
    fn broken_pages_are_read_as_far_as_they_go() {
        assert_eq!(page("<h1>Open<p>Text")[0].title, "Open");
        assert_eq!(page("a < b && c").first().unwrap().text, "a < b && c");
        assert_eq!(page("</p></nav></h1>x")[0].text.trim(), "x");
        assert!(page("<title>only").is_empty());
    }

    proptest! {
        #[test]
        fn any_page_is_read_with_offsets_within_it(
            source in "(\\PC|[\n <>&;/!'\"=-]|<p>|</p>|<h1>|</h1>|<pre>|<title>|<script>|<nav>|&amp;|&nbsp;|\r\n){0,60}",
        ) {
            for s in page(&source) {
                let all = s.source(&(0..s.text.len()));
                prop_assert!(source.get(all.clone()).is_some(), "{:?} of {:?}", all, source);
            }
        }
    }
}
