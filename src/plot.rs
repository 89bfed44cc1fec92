//! Charts as SVG text, for reports: lines over two axes, and stacked bars.
//!
//! Pure functions from numbers to a string. A chart carries its own style, so that it can be put into a page as it
//! is or be a file of its own; it is readable on a light and on a dark ground (`prefers-color-scheme`), and a page
//! may set `--plot-ground`. Nothing is fetched and nothing is scripted. Numbers that are not finite are gaps.

use std::fmt::Write;

/// Size of every chart in its own units; about what a phone shows at full width, so that labels stay readable.
const WIDTH: f64 = 480.0;
/// Height of a line chart without its title and legend.
const BODY: f64 = 270.0;
/// Room left and right of the plot.
const LEFT: f64 = 56.0;
const RIGHT: f64 = 14.0;
/// Height of a line of text.
const LINE: f64 = 20.0;
/// Width of a character of the legend, on average.
const CHARACTER: f64 = 6.6;
/// Colours there are; further series begin again.
const COLOURS: usize = 6;

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stroke {
    /// A line.
    #[default]
    Solid,
    /// A broken grey line, for what a series is held against; it takes no colour.
    Reference,
    /// A line with a dot at every point, whose numbers show under the pointer: for few points.
    Dotted,
}

/// Points that belong together.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Points (x, y) in the order in which they are joined; x must not fall.
    pub points: Vec<(f64, f64)>,
    /// How it is drawn.
    pub stroke: Stroke,
}

impl Series {
    /// A solid line.
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, stroke: Stroke::Solid }
    }

    /// The same, drawn otherwise.
    pub fn drawn(self, stroke: Stroke) -> Self {
        Self { stroke, ..self }
    }
}

/// A line chart. Axes reach over the points unless a range is given; what lies outside of it is cut off.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Chart {
    /// Its heading.
    pub title: String,
    /// What x is, with its unit.
    pub x_label: String,
    /// What y is, with its unit.
    pub y_label: String,
    /// The lines.
    pub series: Vec<Series>,
    /// First and last x.
    pub x_range: Option<(f64, f64)>,
    /// First and last y.
    pub y_range: Option<(f64, f64)>,
    /// Space x by its logarithm; points at or below 0 are gaps.
    pub x_log: bool,
}

/// Horizontal bars, each cut into the same parts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Bars {
    /// Its heading.
    pub title: String,
    /// What is measured, with its unit.
    pub x_label: String,
    /// Names of the parts, in the order in which they are joined.
    pub parts: Vec<String>,
    /// Each bar's name and the lengths of its parts, not negative.
    pub bars: Vec<(String, Vec<f64>)>,
}

/// One axis: from numbers to places.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    log: bool,
}

impl Axis {
    /// Over `values`, or over `range`; never empty, whatever the values.
    fn new(values: impl Iterator<Item = f64>, range: Option<(f64, f64)>, log: bool, from: f64, to: f64) -> Self {
        let usable = |v: &f64| v.is_finite() && (!log || *v > 0.0);
        let (low, high) = range.unwrap_or_else(|| {
            values.filter(usable).fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)))
        });
        let (low, high) = if usable(&low) && usable(&high) && low <= high { (low, high) } else { (1.0, 1.0) };
        let (low, high) = match (low < high, log) {
            (true, _) => (low, high),
            (false, true) => (low / 2.0, high * 2.0),
            (false, false) => (low - low.abs().max(1.0) / 2.0, high + high.abs().max(1.0) / 2.0),
        };
        Self { low, high, from, to, log }
    }

    fn place(&self, value: f64) -> Option<f64> {
        let scale = |v: f64| if self.log { v.ln() } else { v };
        let share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low));
        // A hair beyond the end is rounding, not a point outside.
        (share.is_finite() && (-1e-9..=1.0 + 1e-9).contains(&share))
            .then_some(self.from + share * (self.to - self.from))
    }

    /// Round numbers within the axis, about `wanted` of them, with their labels.
    fn ticks(&self, wanted: usize) -> Vec<(f64, String)> {
        if self.log {
            let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
            let multiples: &[f64] = if last - first > 3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let decades = (first..=last).step_by(1 + (last - first) as usize / 8);
            let all = decades.flat_map(|d| multiples.iter().map(move |m| m * 10f64.powi(d)));
            let inside: Vec<f64> = all.filter(|v| (self.low..=self.high).contains(v)).collect();
            return inside.into_iter().map(|v| (v, label(v, v))).collect();
        }
        let step = round_step((self.high - self.low) / wanted.max(1) as f64);
        let first = (self.low / step - 1e-9).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        // Where the numbers are too far from zero for their distance, steps can no longer be counted.
        (first..=last.min(first.saturating_add(40))).map(|i| (i as f64 * step, label(i as f64 * step, step))).collect()
    }
}

/// The smallest of 1, 2, 5, 10, 20, ... that is not below `least`.
fn round_step(least: f64) -> f64 {
    let unit = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|m| m * unit).find(|step| *step >= least * (1.0 - 1e-9)).unwrap_or(10.0 * unit)
}

/// A number of an axis whose numbers are `step` apart.
fn label(value: f64, step: f64) -> String {
    if value != 0.0 && !(1e-4..1e7).contains(&value.abs()) {
        return format!("{value:.1e}");
    }
    let digits = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
    let text = format!("{value:.digits$}");
    if text.trim_start_matches('-').bytes().all(|b| matches!(b, b'0' | b'.')) {
        text.trim_start_matches('-').to_owned()
    } else {
        text
    }
}

/// A number with up to four digits behind the point.
fn short(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Text for XML.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            // XML 1.0 has no place for other control characters, not even escaped.
            c if c.is_control() || matches!(c, '\u{FFFE}' | '\u{FFFF}') => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

/// The colours are Okabe and Ito's, told apart by people who see colours differently; lighter on a dark ground.
const STYLE: &str = "<style>.plot{--g:var(--plot-ground,#fff);--t:#1f2933;--m:#5b6673;--a:#d7dce1;--c0:#0072b2;\
--c1:#d55e00;--c2:#009e73;--c3:#b8578f;--c4:#b07d00;--c5:#3a8fc4;width:100%;max-width:640px;height:auto;\
font:12px system-ui,sans-serif}@media(prefers-color-scheme:dark){.plot{--g:var(--plot-ground,#14181d);--t:#e6eaee;\
--m:#9aa5b1;--a:#333c46;--c0:#56b4e9;--c1:#f58a4b;--c2:#35c79c;--c3:#e59cc5;--c4:#f0c04a;--c5:#a8d5f2}}\
.plot .g{fill:var(--g)}.plot text{fill:var(--m)}.plot .h{fill:var(--t);font-size:14px;font-weight:600}\
.plot .l{fill:var(--t)}.plot .a{stroke:var(--a);fill:none}.plot path{fill:none;stroke-width:2;stroke-linejoin:round;\
stroke-linecap:round}.plot .r{stroke:var(--m);stroke-dasharray:5 4;stroke-width:1.5;stroke-linecap:butt}.plot .e{text-anchor:end}.plot .n{text-anchor:middle}\
.plot .s0{stroke:var(--c0)}.plot .s1{stroke:var(--c1)}.plot .s2{stroke:var(--c2)}.plot .s3{stroke:var(--c3)}\
.plot .s4{stroke:var(--c4)}.plot .s5{stroke:var(--c5)}.plot .f0{fill:var(--c0)}.plot .f1{fill:var(--c1)}\
.plot .f2{fill:var(--c2)}.plot .f3{fill:var(--c3)}.plot .f4{fill:var(--c4)}.plot .f5{fill:var(--c5)}</style>";

/// An SVG in the making. Writing into a string cannot fail, so the results of `write!` are dropped.
struct Svg(String);

impl Svg {
    fn begin(title: &str, height: f64) -> Self {
        let title = escape(title);
        let mut svg = Self(String::new());
        let _ = write!(
            svg.0,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
             aria-label=\"{title}\">{STYLE}<rect class=\"g\" width=\"{WIDTH}\" height=\"{height}\"/>"
        );
        svg.text(LEFT, 18.0, "h", &title);
        svg
    }

    /// Text that is safe already.
    fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let _ = write!(self.0, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{text}</text>");
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), class: &str) {
        let _ = write!(self.0, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" class=\"{class}\"/>");
    }

    fn end(mut self) -> String {
        self.0.push_str("</svg>");
        self.0
    }

    /// Entries (class of the swatch, name) in rows under the title; gives the height they took.
    fn legend<'a>(&mut self, entries: impl Iterator<Item = (String, &'a str)>) -> f64 {
        let (mut x, mut row) = (LEFT, 0.0);
        for (class, name) in entries {
            let width = 30.0 + CHARACTER * name.chars().count() as f64;
            if x > LEFT && x + width > WIDTH - RIGHT {
                (x, row) = (LEFT, row + 1.0);
            }
            let y = 38.0 + row * LINE;
            if class.starts_with('f') {
                let _ = write!(
                    self.0,
                    "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"12\" height=\"10\" class=\"{class}\"/>",
                    y - 9.0
                );
            } else {
                let _ = write!(self.0, "<path d=\"M{x:.1} {:.1}h16\" class=\"{class}\"/>", y - 4.0);
            }
            self.text(x + 21.0, y, "l", &escape(name));
            x += width;
        }
        (row + 1.0) * LINE
    }
}

/// Height of a legend of these names: what [`Svg::legend`] will take.
fn legend_height<'a>(names: impl Iterator<Item = &'a str>) -> f64 {
    Svg(String::new()).legend(names.map(|name| (String::new(), name)))
}

/// A line chart as SVG.
pub fn lines(chart: &Chart) -> String {
    let named = || chart.series.iter().filter(|s| !s.name.is_empty());
    let legend = if named().next().is_some() { legend_height(named().map(|s| s.name.as_str())) } else { 0.0 };
    let top = 30.0 + legend;
    let bottom = top + BODY - 46.0;
    let points = || chart.series.iter().flat_map(|s| s.points.iter());
    let x_axis = Axis::new(points().map(|p| p.0), chart.x_range, chart.x_log, LEFT, WIDTH - RIGHT);
    let y_axis = Axis::new(points().map(|p| p.1), chart.y_range, false, bottom, top);
    let mut svg = Svg::begin(&chart.title, top + BODY);
    for (value, text) in y_axis.ticks(5) {
        let Some(y) = y_axis.place(value) else { continue };
        svg.line((LEFT, y), (WIDTH - RIGHT, y), "a");
        svg.text(LEFT - 7.0, y + 4.0, "e", &text);
    }
    for (value, text) in x_axis.ticks(6) {
        let Some(x) = x_axis.place(value) else { continue };
        svg.line((x, bottom), (x, bottom + 5.0), "a");
        svg.text(x, bottom + 19.0, "n", &text);
    }
    svg.line((LEFT, bottom), (WIDTH - RIGHT, bottom), "a");
    svg.text((LEFT + WIDTH - RIGHT) / 2.0, bottom + 38.0, "n", &escape(&chart.x_label));
    let middle = (top + bottom) / 2.0;
    let _ = write!(
        svg.0,
        "<text transform=\"translate(14 {middle:.1}) rotate(-90)\" class=\"n\">{}</text>",
        escape(&chart.y_label)
    );
    // What the others are held against lies beneath them.
    let mut classes = Vec::new();
    let mut coloured = 0;
    for series in &chart.series {
        classes.push(if series.stroke == Stroke::Reference {
            "r".to_owned()
        } else {
            format!("s{}", coloured % COLOURS)
        });
        coloured += usize::from(series.stroke != Stroke::Reference);
    }
    let drawn = || chart.series.iter().zip(&classes);
    let (beneath, above): (Vec<_>, Vec<_>) = drawn().partition(|(s, _)| s.stroke == Stroke::Reference);
    for (series, class) in beneath.into_iter().chain(above) {
        let placed = series.points.iter().map(|&(x, y)| Some((x_axis.place(x)?, y_axis.place(y)?)));
        svg.path(&thin(placed.collect()), class);
        if series.stroke == Stroke::Dotted {
            for (x, y) in &series.points {
                let (Some(px), Some(py)) = (x_axis.place(*x), y_axis.place(*y)) else { continue };
                let fill = class.replacen('s', "f", 1);
                let told = escape(&format!("{} {}, {}", series.name, short(*x), short(*y)));
                let _ = write!(
                    svg.0,
                    "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"3.5\" class=\"{fill}\"><title>{told}</title></circle>"
                );
            }
        }
    }
    if legend > 0.0 {
        let entries = drawn().filter(|(s, _)| !s.name.is_empty());
        svg.legend(entries.map(|(s, class)| (class.clone(), s.name.as_str())));
    }
    svg.end()
}

impl Svg {
    fn path(&mut self, points: &[Option<(f64, f64)>], class: &str) {
        let mut d = String::new();
        for stroke in points.split(Option::is_none) {
            // A point that stands alone is a line to itself, which its round ends show.
            let alone: &[Option<(f64, f64)>] = if stroke.len() == 1 { stroke } else { &[] };
            for (i, (x, y)) in stroke.iter().chain(alone).flatten().enumerate() {
                let _ = write!(d, "{}{x:.1} {y:.1}", if i == 0 { "M" } else { "L" });
            }
        }
        if !d.is_empty() {
            let _ = write!(self.0, "<path d=\"{d}\" class=\"{class}\"/>");
        }
    }
}

/// Of all points that fall on one column of the screen only the first, the lowest, the highest and the last: a
/// line through them looks the same, and a million points do not make a page heavy.
fn thin(points: Vec<Option<(f64, f64)>>) -> Vec<Option<(f64, f64)>> {
    let column = |point: &Option<(f64, f64)>| point.map(|(x, _)| x.floor() as i64);
    let mut kept = Vec::new();
    for run in points.chunk_by(|a, b| column(a) == column(b)) {
        if run.len() <= 4 || run.first().is_none_or(Option::is_none) {
            // A gap is a gap, however long.
            kept.extend(run.iter().take(4).copied());
            continue;
        }
        let y = |i: usize| run.get(i).copied().flatten().map_or(0.0, |p| p.1);
        let by_y = |a: &usize, b: &usize| y(*a).total_cmp(&y(*b));
        let ends = [(0..run.len()).min_by(by_y), (0..run.len()).max_by(by_y)].into_iter().flatten();
        let mut chosen: Vec<usize> = ends.chain([0, run.len() - 1]).collect();
        chosen.sort_unstable();
        chosen.dedup();
        kept.extend(chosen.into_iter().filter_map(|i| run.get(i).copied()));
    }
    kept
}

/// Stacked bars as SVG, one under the other.
pub fn bars(chart: &Bars) -> String {
    const THICK: f64 = 22.0;
    const STRIDE: f64 = 36.0;
    let class = |part: usize| format!("f{}", part % COLOURS);
    let top = 36.0 + legend_height(chart.parts.iter().map(String::as_str));
    let bottom = top + STRIDE * chart.bars.len() as f64;
    let usable = |length: f64| if length.is_finite() { length.max(0.0) } else { 0.0 };
    let total = |parts: &[f64]| parts.iter().map(|l| usable(*l)).sum::<f64>();
    let longest = chart.bars.iter().map(|(_, parts)| total(parts)).fold(0.0, f64::max);
    // Room for the number behind the longest bar.
    let axis = Axis::new(std::iter::empty(), Some((0.0, longest.max(1e-9))), false, LEFT, WIDTH - RIGHT - 56.0);
    let mut svg = Svg::begin(&chart.title, bottom + 48.0);
    svg.legend(chart.parts.iter().enumerate().map(|(i, name)| (class(i), name.as_str())));
    for (value, text) in axis.ticks(5) {
        let Some(x) = axis.place(value) else { continue };
        svg.line((x, top - 4.0), (x, bottom), "a");
        svg.text(x, bottom + 16.0, "n", &text);
    }
    for (row, (name, parts)) in chart.bars.iter().enumerate() {
        let y = top + STRIDE * row as f64;
        svg.text(LEFT - 7.0, y + 16.0, "e", &escape(name));
        let mut sum = 0.0;
        for (part, length) in parts.iter().enumerate() {
            let length = usable(*length);
            let (Some(from), Some(to)) = (axis.place(sum), axis.place(sum + length)) else { continue };
            sum += length;
            let told = escape(&format!("{}: {}", chart.parts.get(part).map_or("", String::as_str), short(length)));
            let _ = write!(
                svg.0,
                "<rect x=\"{from:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{THICK}\" class=\"{}\"><title>{told}</title></rect>",
                (to - from).max(0.0),
                class(part)
            );
        }
        let end = axis.place(sum).unwrap_or(LEFT);
        let digits = if longest >= 100.0 { 0 } else { 1 };
        svg.text(end + 6.0, y + 16.0, "l", &format!("{sum:.digits$}"));
    }
    svg.text((LEFT + WIDTH - RIGHT) / 2.0, bottom + 36.0, "n", &escape(&chart.x_label));
    svg.end()
}

#[cfg(test)]
mod tests {
    use html5gum::{Token, Tokenizer};
    use proptest::prelude::*;

    use super::*;

    /// Every number that stands in an attribute of this name of this element.
    fn numbers(svg: &str, element: &str, attribute: &str) -> Vec<f64> {
        let mut found = Vec::new();
        for token in Tokenizer::new(svg) {
            let Token::StartTag(tag) = token.unwrap() else { continue };
            if tag.name.as_slice() == element.as_bytes() {
                found.extend(
                    tag.attributes
                        .get(attribute.as_bytes())
                        .map(|v| std::str::from_utf8(v).unwrap().parse::<f64>().unwrap()),
                );
            }
        }
        found
    }

    /// The points of every path of this class.
    fn paths(svg: &str, class: &str) -> Vec<Vec<(f64, f64)>> {
        let mark = format!("\" class=\"{class}\"/>");
        svg.split("<path d=\"")
            .skip(1)
            .filter_map(|rest| rest.split_once(&mark).filter(|(d, _)| !d.contains('"')))
            .filter(|(d, _)| !d.contains('h'))
            .map(|(d, _)| {
                d.split(['M', 'L'])
                    .skip(1)
                    .map(|p| p.split_once(' ').map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap())).unwrap())
                    .collect()
            })
            .collect()
    }

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        Chart { title: "t".into(), series: vec![Series::new("a", points)], ..Chart::default() }
    }

    #[test]
    fn corners_lie_in_the_corners() {
        let svg = lines(&chart(vec![(0.0, 1.0), (10.0, 3.0)]));
        // One row of legend: the plot is from 50 to 50 + 270 - 46.
        assert_eq!(paths(&svg, "s0"), [[(LEFT, 274.0), (WIDTH - RIGHT, 50.0)]]);
        let log = lines(&Chart { x_log: true, ..chart(vec![(1.0, 0.0), (10.0, 1.0), (100.0, 2.0)]) });
        assert_eq!(paths(&log, "s0")[0][1].0, (LEFT + WIDTH - RIGHT) / 2.0);
    }

    #[test]
    fn ticks_are_round_numbers() {
        let ticks = |low, high, log| -> Vec<String> {
            Axis::new(std::iter::empty(), Some((low, high)), log, 0.0, 1.0).ticks(5).into_iter().map(|t| t.1).collect()
        };
        assert_eq!(ticks(0.0, 1.0, false), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(ticks(-3.0, 17.0, false), ["0", "5", "10", "15"]);
        assert_eq!(ticks(-0.02, 0.02, false), ["-0.02", "-0.01", "0.00", "0.01", "0.02"]);
        assert_eq!(ticks(1.0, 100.0, true), ["1", "2", "5", "10", "20", "50", "100"]);
        assert_eq!(ticks(0.0, 3e9, false), ["0", "1.0e9", "2.0e9", "3.0e9"]);
    }

    #[test]
    fn a_gap_is_not_bridged_and_what_is_outside_is_cut_off() {
        let svg = lines(&chart(vec![(0.0, 0.0), (1.0, f64::NAN), (2.0, 1.0), (3.0, 1.0)]));
        assert_eq!(svg.matches("M").count(), 2 + 1, "two strokes and the swatch");
        let svg = lines(&Chart { y_range: Some((0.0, 1.0)), ..chart(vec![(0.0, 0.5), (1.0, 9.0), (2.0, 1.0)]) });
        assert_eq!(paths(&svg, "s0")[0].len(), 2 * 2, "two points, each a line to itself");
    }

    #[test]
    fn a_point_that_stands_alone_is_seen() {
        let svg = lines(&chart(vec![(1.0, 1.0)]));
        let path = &paths(&svg, "s0")[0];
        assert_eq!((path.len(), path[0]), (2, path[1]));
    }

    #[test]
    fn references_take_no_colour_and_dots_say_their_numbers() {
        let series = vec![
            Series::new("even", vec![(0.0, 0.0), (1.0, 1.0)]).drawn(Stroke::Reference),
            Series::new("bins", vec![(0.25, 0.5)]).drawn(Stroke::Dotted),
        ];
        let svg = lines(&Chart { series, ..Chart::default() });
        assert_eq!((paths(&svg, "r").len(), paths(&svg, "s0").len()), (1, 1));
        assert!(svg.contains("<title>bins 0.25, 0.5</title>"), "{svg}");
    }

    #[test]
    fn bars_are_as_long_as_their_numbers() {
        let bars = bars(&Bars {
            title: "latency".into(),
            x_label: "ms".into(),
            parts: vec!["find".into(), "read".into()],
            bars: vec![("p50".into(), vec![10.0, 30.0]), ("p99".into(), vec![20.0, 60.0])],
        });
        // 80 ms are 480 - 56 - 14 - 56 = 354 wide, so 10 ms 44.25. The ground and two swatches come first.
        let widths = &numbers(&bars, "rect", "width")[3..];
        assert_eq!(widths, [44.2, 132.8, 88.5, 265.5]);
    }

    #[test]
    fn a_million_points_are_thinned_to_the_same_outline() {
        let points: Vec<(f64, f64)> = (0..1_000_000).map(|i| (f64::from(i), f64::from(i % 97))).collect();
        let svg = lines(&chart(points));
        assert!(svg.len() < 60_000, "{} bytes", svg.len());
        let path = &paths(&svg, "s0")[0];
        let low = path.iter().map(|p| p.1).fold(f64::MIN, f64::max);
        assert_eq!((path[0], low), ((LEFT, 274.0), 274.0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn any_numbers_and_any_text_give_a_chart_within_its_frame(
            points in prop::collection::vec((prop::num::f64::ANY, prop::num::f64::ANY), 0..40),
            plain in prop::collection::vec((-1e3f64..1e3, -1e3f64..1e3), 0..40),
            text: String, log: bool, dotted: bool,
        ) {
            let stroke = if dotted { Stroke::Dotted } else { Stroke::Solid };
            let series = vec![Series::new(text.clone(), points).drawn(stroke), Series::new("plain", plain)];
            let svg = lines(&Chart {
                title: text.clone(), x_label: text.clone(), y_label: text.clone(), series, x_log: log, ..Chart::default()
            });
            for class in ["s0", "s1"] {
                for (x, y) in paths(&svg, class).into_iter().flatten() {
                    prop_assert!((LEFT..=WIDTH - RIGHT).contains(&x) && y >= 0.0 && y.is_finite(), "{} {}", x, y);
                }
            }
            prop_assert!(!svg.contains("NaN") || text.contains("NaN"));
            let names = |svg: &str| Tokenizer::new(svg).flatten().filter(|t| matches!(t, Token::StartTag(tag)
                if !["svg", "style", "rect", "text", "line", "path", "circle", "title"].iter().any(|n| tag.name.as_slice() == n.as_bytes()))).count();
            prop_assert_eq!(names(&svg), 0, "text became an element");
        }

        #[test]
        fn ticks_lie_on_their_axis(low in -1e6f64..1e6, width in 1e-3f64..1e6) {
            let axis = Axis::new([low, low + width].into_iter(), None, false, 0.0, 1.0);
            let ticks = axis.ticks(5);
            prop_assert!((2..=11).contains(&ticks.len()), "{:?}", ticks);
            prop_assert!(ticks.iter().all(|(value, _)| axis.place(*value).is_some()));
        }

        #[test]
        fn any_lengths_give_bars(lengths in prop::collection::vec(prop::collection::vec(prop::num::f64::ANY, 0..8), 0..6)) {
            let chart = Bars {
                parts: (0..7).map(|i| format!("part {i}")).collect(),
                bars: lengths.into_iter().map(|l| ("b".to_owned(), l)).collect(),
                ..Bars::default()
            };
            let svg = bars(&chart);
            prop_assert!(!svg.contains("NaN\"") && numbers(&svg, "rect", "width").iter().all(|w| (0.0..=WIDTH).contains(w)));
        }
    }
}
