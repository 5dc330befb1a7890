//! The roofline as a picture: operations per byte across, operations per second up, both by powers of ten.

use super::{Report, Scope};
use crate::run::Class;
use std::fmt::Write;

/// Of the picture, and of the frame in it.
const SIZE: (f64, f64) = (1000.0, 640.0);
const FRAME: (f64, f64, f64, f64) = (80.0, 50.0, 660.0, 520.0);
/// Okabe and Ito's colours, which everybody can tell apart.
const COLOURS: [&str; 7] = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"];

/// Powers of ten from the first to the last.
struct Scale {
    first: f64,
    last: f64,
}

impl Scale {
    /// Whole decades around these values.
    fn around(values: impl Iterator<Item = f64>) -> Scale {
        let logs = values.filter(|v| *v > 0.0 && v.is_finite()).map(f64::log10);
        let (low, high) = logs.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        if low > high {
            return Scale { first: 0.0, last: 1.0 };
        }
        let first = low.floor();
        Scale { first, last: high.ceil().max(first + 1.0) }
    }

    /// Where a value lies, 0 to 1.
    fn at(&self, value: f64) -> f64 {
        ((value.log10() - self.first) / (self.last - self.first)).clamp(0.0, 1.0)
    }

    fn decades(&self) -> impl Iterator<Item = i32> {
        self.first as i32..=self.last as i32
    }
}

struct Chart {
    x: Scale,
    y: Scale,
    svg: String,
}

impl Chart {
    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        (FRAME.0 + self.x.at(x) * FRAME.2, FRAME.1 + (1.0 - self.y.at(y)) * FRAME.3)
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), style: &str) {
        let _ = writeln!(self.svg, r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" {style}/>"#);
    }

    fn text(&mut self, (x, y): (f64, f64), anchor: &str, text: &str) {
        let text = escape(text);
        let _ = writeln!(self.svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#);
    }

    fn grid(&mut self) {
        for d in self.x.decades().collect::<Vec<_>>() {
            let (x, _) = self.place(10f64.powi(d), 1.0);
            self.line((x, FRAME.1), (x, FRAME.1 + FRAME.3), r##"stroke="#ddd""##);
            self.text((x, FRAME.1 + FRAME.3 + 18.0), "middle", &power(d));
        }
        for d in self.y.decades().collect::<Vec<_>>() {
            let (_, y) = self.place(1.0, 10f64.powi(d));
            self.line((FRAME.0, y), (FRAME.0 + FRAME.2, y), r##"stroke="#ddd""##);
            self.text((FRAME.0 - 6.0, y + 4.0), "end", &power(d));
        }
        self.text((FRAME.0 + FRAME.2 / 2.0, SIZE.1 - 24.0), "middle", "floating-point operations per byte");
        self.text((FRAME.0, FRAME.1 - 8.0), "start", "GFLOP/s");
    }

    /// The line that nothing of a precision can be above, and one for its best product.
    fn roof(&mut self, bytes_per_second: f64, roof: f64, matmul: f64, name: &str, colour: &str) {
        let (left, right) = (10f64.powf(self.x.first), 10f64.powf(self.x.last));
        let slope = |x: f64| (x * bytes_per_second / 1e9).min(roof / 1e9);
        let ridge = (roof / bytes_per_second).clamp(left, right);
        let style = format!(r#"stroke="{colour}" stroke-width="2""#);
        for (a, b) in [(left, ridge), (ridge, right)] {
            let ends = (self.place(a, slope(a)), self.place(b, slope(b)));
            self.line(ends.0, ends.1, &style);
        }
        let end = self.place(right, slope(right));
        self.text((end.0 - 6.0, end.1 - 5.0), "end", name);
        if matmul <= 0.0 {
            return;
        }
        let start = (matmul / bytes_per_second).clamp(left, right);
        let (a, b) = (self.place(start, matmul / 1e9), self.place(right, matmul / 1e9));
        self.line(a, b, &format!(r#"stroke="{colour}" stroke-dasharray="5 4""#));
        self.text((b.0 - 100.0, b.1 - 5.0), "end", &format!("best matmul, {name}"));
    }
}

fn power(exponent: i32) -> String {
    let digits = ["⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"];
    let digit = digits[exponent.unsigned_abs() as usize % 10];
    format!("10{}{digit}", if exponent < 0 { "⁻" } else { "" })
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The picture of a report: kernels as discs, whole runs as squares, named where the pointer rests.
pub fn roofline_svg(report: &Report) -> String {
    let machine = &report.machine;
    let roof = machine.roofline();
    let points: Vec<_> = report.entries.iter().filter(|e| e.flops > 0 && e.bytes > 0).collect();
    let intensity = |i: usize| points[i].flops as f64 / points[i].bytes as f64;
    let rate = |i: usize| points[i].flops as f64 / points[i].seconds.median / 1e9;
    // Nothing rounds its operands: nobody asks for that roof.
    let half = points.iter().any(|e| e.class != Class::F32).then(|| roof.rate(Class::F16));
    let highest = half.unwrap_or(0.0).max(roof.flops_per_second);
    let ridge = highest / roof.bytes_per_second;
    let x = Scale::around((0..points.len()).map(intensity).chain([ridge * 2.0]));
    let y = Scale::around((0..points.len()).map(rate).chain([highest / 1e9]));
    let mut chart = Chart { x, y, svg: String::new() };
    let (w, h) = SIZE;
    let _ = writeln!(
        chart.svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" font-family="sans-serif" font-size="12">
<rect width="{w}" height="{h}" fill="#fff"/>"##
    );
    chart.text((FRAME.0, 22.0), "start", &format!("Roofline of {}; squares are whole runs", report.adapter.name));
    chart.grid();
    let matmul = |half: bool| {
        let class = machine.ceilings.iter().filter(|c| (c.class == Class::F32) != half);
        class.map(|c| c.matmul).fold(0.0, f64::max)
    };
    // Points are judged by the roof of their precision: the one of f16 lies at or above the other.
    if let Some(half) = half {
        chart.roof(roof.bytes_per_second, half, matmul(true), "f16", "#888");
    }
    chart.roof(roof.bytes_per_second, roof.flops_per_second, matmul(false), "f32", "#000");
    let mut cases: Vec<&str> = Vec::new();
    for (i, entry) in points.iter().enumerate() {
        // `train`, `prefill`, `decode` and the like, kernels and whole runs alike.
        let case = entry.name.split([' ', ':']).next().unwrap_or_default();
        let place = cases.iter().position(|c| *c == case).unwrap_or_else(|| {
            cases.push(case);
            cases.len() - 1
        });
        let colour = COLOURS[place % COLOURS.len()];
        let (px, py) = chart.place(intensity(i), rate(i));
        let title = escape(&format!("{}: {:.2} GFLOP/s, {:.1} %", entry.name, rate(i), entry.fraction * 100.0));
        let shape = match entry.scope() {
            Scope::Kernels => format!(r#"<circle cx="{px:.1}" cy="{py:.1}" r="4""#),
            Scope::Whole => format!(r#"<rect x="{:.1}" y="{:.1}" width="9" height="9""#, px - 4.5, py - 4.5),
        };
        let (open, close) = (shape, if entry.scope() == Scope::Kernels { "circle" } else { "rect" });
        let _ = writeln!(chart.svg, r#"{open} fill="{colour}" fill-opacity="0.7"><title>{title}</title></{close}>"#);
    }
    for (i, case) in cases.iter().enumerate() {
        let at = (FRAME.0 + FRAME.2 + 20.0, FRAME.1 + 14.0 + 18.0 * i as f64);
        let colour = COLOURS[i % COLOURS.len()];
        let _ = writeln!(chart.svg, r#"<circle cx="{:.1}" cy="{:.1}" r="4" fill="{colour}"/>"#, at.0, at.1 - 4.0);
        chart.text((at.0 + 10.0, at.1), "start", case);
    }
    chart.svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::compare::tests::report;

    /// Elements that are open at the end, and how many there were: enough of XML for what is written here.
    fn parse(svg: &str) -> (Vec<String>, usize) {
        let (mut open, mut count) = (Vec::<String>::new(), 0);
        for part in svg.split('<').skip(1) {
            let (tag, text) = part.split_once('>').expect("every tag is closed");
            assert!(!text.contains('&') || text.contains(';'), "{text}");
            count += 1;
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name), "{part}");
            } else if !tag.ends_with('/') {
                open.push(tag.split_whitespace().next().unwrap().to_string());
            }
            assert!(tag.matches('"').count() % 2 == 0 && !tag.contains("NaN") && !tag.contains("inf"), "{tag}");
        }
        (open, count)
    }

    #[test]
    fn the_picture_is_well_formed_and_holds_every_point() {
        let mut report = report(&[("train: a <b> & c", 0.5, 0.1), ("train: d", 0.1, 0.1), ("step", 0.3, 0.0)]);
        report.entries[2].kernel.clear();
        let svg = roofline_svg(&report);
        let (open, count) = parse(&svg);
        assert!(open.is_empty() && count > 30, "{open:?} {count}");
        assert_eq!(svg.matches("<title>").count(), 3);
        assert!(svg.contains("train: a &lt;b&gt; &amp; c: 0.50 GFLOP/s, 50.0 %"), "{svg}");
        report.entries.clear();
        assert!(parse(&roofline_svg(&report)).0.is_empty());
    }

    #[test]
    fn scales_hold_what_they_were_made_for() {
        let scale = Scale::around([0.3, 47.0].into_iter());
        assert_eq!((scale.first, scale.last), (-1.0, 2.0));
        assert!((scale.at(1.0) - 1.0 / 3.0).abs() < 1e-12 && scale.at(1e9) == 1.0);
        assert_eq!(power(-3), "10⁻³");
    }
}
