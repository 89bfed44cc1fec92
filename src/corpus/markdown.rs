//! Markdown: prose, lists, tables and code under their headings, as plain text.

use std::ops::Range;

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use super::html;
use super::outline::Outline;

/// Write the document `source` to `outline`.
pub(super) fn outline(source: &str, outline: &mut Outline) {
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_HEADING_ATTRIBUTES
        | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS
        | Options::ENABLE_PLUSES_DELIMITED_METADATA_BLOCKS
        | Options::ENABLE_GFM;
    // A heading's or the metadata's text is collected apart from the section's.
    let mut aside: Option<String> = None;
    let mut lists = 0;
    for (event, range) in Parser::new_ext(source, options).into_offset_iter() {
        match event {
            Event::Start(Tag::List(_)) => {
                outline.part(if lists == 0 { "\n\n" } else { "\n" });
                lists += 1;
            }
            Event::End(TagEnd::List(_)) => lists -= 1,
            Event::Start(tag) => start(&tag, source, range, &mut aside, outline),
            Event::End(TagEnd::Heading(level)) => outline.heading(depth(level), &aside.take().unwrap_or_default()),
            Event::End(TagEnd::MetadataBlock(_)) => {
                outline.title = title_of(&aside.take().unwrap_or_default());
            }
            Event::End(TagEnd::CodeBlock | TagEnd::Table) => outline.part("\n\n"),
            Event::Text(text) => match &mut aside {
                Some(aside) => aside.push_str(&text),
                None => outline.push(&text, range),
            },
            Event::Code(text) | Event::InlineMath(text) | Event::DisplayMath(text) => match &mut aside {
                Some(aside) => aside.push_str(&text),
                None => push_code(source, &text, range, outline),
            },
            Event::SoftBreak | Event::HardBreak => match &mut aside {
                Some(aside) => aside.push(' '),
                None => outline.push("\n", range.start..range.start + 1),
            },
            Event::End(TagEnd::Item) => outline.end_item(),
            Event::Rule => outline.part("\n\n"),
            // Tags within a line; a block of HTML was read at its start. The numbers of notes say nothing.
            Event::Html(_) | Event::InlineHtml(_) | Event::FootnoteReference(_) | Event::TaskListMarker(_) => {}
            Event::End(_) => {}
        }
    }
}

fn start(tag: &Tag<'_>, source: &str, range: Range<usize>, aside: &mut Option<String>, outline: &mut Outline) {
    match tag {
        Tag::Heading { .. } | Tag::MetadataBlock(_) => *aside = Some(String::new()),
        Tag::Paragraph
        | Tag::BlockQuote(_)
        | Tag::CodeBlock(_)
        | Tag::FootnoteDefinition(_)
        | Tag::Table(_)
        | Tag::DefinitionListTitle => outline.part("\n\n"),
        Tag::Item => {
            outline.part("\n");
            // The bullet stays, so that the splitter sees where items begin.
            if let Some(mark) = source.get(range.clone()).and_then(|item| item.split_whitespace().next())
                && mark.len() <= 4
            {
                outline.lead(mark, range.start..range.start + mark.len());
            }
        }
        Tag::TableRow | Tag::TableHead => outline.part("\n"),
        Tag::TableCell => outline.part(" "),
        Tag::HtmlBlock => {
            outline.part("\n\n");
            html::fragment(source.get(range.clone()).unwrap_or_default(), range.start, outline);
        }
        _ => {}
    }
}

/// Push code within a line. Its range encloses the backticks; the code itself mostly stands in it as it is.
fn push_code(source: &str, text: &str, range: Range<usize>, outline: &mut Outline) {
    let within = source.get(range.clone()).and_then(|slice| slice.find(text));
    let code = within.map_or(range.clone(), |at| range.start + at..range.start + at + text.len());
    outline.push(text, code);
}

fn depth(level: HeadingLevel) -> u8 {
    match level {
        HeadingLevel::H1 => 1,
        HeadingLevel::H2 => 2,
        HeadingLevel::H3 => 3,
        HeadingLevel::H4 => 4,
        HeadingLevel::H5 => 5,
        HeadingLevel::H6 => 6,
    }
}

/// The `title: ...` (YAML) or `title = ...` (TOML) of a metadata block.
fn title_of(metadata: &str) -> Option<String> {
    metadata.lines().find_map(|line| {
        let value = line.strip_prefix("title")?.trim_start().strip_prefix([':', '='])?.trim();
        let quoted = |q: char| value.strip_prefix(q).and_then(|v| v.strip_suffix(q));
        Some(quoted('"').or_else(|| quoted('\'')).unwrap_or(value).to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GUIDE: &str = "Before.\n\n# Guide to ice\n\nIce is *hard* &amp; cold.\nIt `melts`.\n\n## Kinds\n\n\
        - firn\n- névé\n\n```rust\nlet ice = 1;\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n# Other\n\nText.\n";

    fn sections(source: &str) -> Vec<(String, String)> {
        let mut o = Outline::new(0);
        outline(source, &mut o);
        o.finish("stem").into_iter().map(|s| (s.title, s.text)).collect()
    }

    #[test]
    fn prose_stands_under_its_headings() {
        let found = sections(GUIDE);
        let titles: Vec<&str> = found.iter().map(|s| s.0.as_str()).collect();
        assert_eq!(titles, ["Guide to ice", "Guide to ice", "Guide to ice > Kinds", "Guide to ice > Other"]);
        let texts: Vec<&str> = found.iter().map(|s| s.1.trim()).collect();
        assert_eq!(texts[0], "Before.");
        assert_eq!(texts[1], "Ice is hard & cold.\nIt melts.");
        assert_eq!(texts[2], "- firn\n- névé\n\nlet ice = 1;\n\na b\n1 2");
        assert_eq!(texts[3], "Text.");
    }

    #[test]
    fn the_title_is_front_matter_then_heading_then_file_name() {
        assert_eq!(sections("---\ntitle: \"My page\"\n---\n\n# H\n\nx\n")[0].0, "My page > H");
        assert_eq!(sections("+++\ntitle = 'Mine'\n+++\n\nx\n")[0].0, "Mine");
        assert_eq!(sections("## H\n\nx\n")[0].0, "H");
        assert_eq!(sections("x\n")[0].0, "stem");
    }

    #[test]
    fn html_blocks_are_text_without_tags() {
        let found = sections("<p align=\"center\">\nHello <b>there</b></p>\n\nA <i>line</i>.\n");
        assert_eq!(found[0].1.trim(), "Hello there\n\nA line.");
    }

    #[test]
    fn items_keep_their_bullets() {
        assert_eq!(sections("- a\n\n  more\n\n- b\n-\n- c\n")[0].1.trim(), "- a\n\nmore\n- b\n-\n- c");
        assert_eq!(sections("1. a\n   - b\n2. c\n")[0].1.trim(), "1. a\n- b\n2. c");
    }

    #[test]
    fn plain_stretches_know_their_bytes() {
        let mut o = Outline::new(0);
        outline(GUIDE, &mut o);
        let sections = o.finish("stem");
        for word in ["hard", "melts", "névé", "let ice = 1;", "cold.\nIt"] {
            let (section, at) = sections.iter().find_map(|s| Some((s, s.text.find(word)?))).unwrap();
            let source = section.source(&(at..at + word.len()));
            assert_eq!(&GUIDE[source], word);
        }
        let amp = sections[1].text.find('&').unwrap();
        assert_eq!(&GUIDE[sections[1].source(&(amp..amp + 1))], "&amp;");
    }

    proptest! {
        #[test]
        fn any_markdown_is_read_with_offsets_within_it(source in "(\\PC|[\n #*`|<>&;~:=+-]|<p>|&amp;|---|\\[a\\]){0,60}") {
            let mut o = Outline::new(0);
            outline(&source, &mut o);
            for s in o.finish("stem") {
                let all = s.source(&(0..s.text.len()));
                prop_assert!(source.get(all.clone()).is_some(), "{:?} of {:?}", all, source);
            }
        }
    }
}
