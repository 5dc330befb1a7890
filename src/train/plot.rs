//! Curves of runs as a picture, SVG or PNG: a panel a metric, a colour a run.

use super::{METRICS, Metrics};
use crate::error::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};
use std::ops::Range;

/// Okabe and Ito's colours, which everybody can tell apart.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x00, 0x00, 0x00),
];
/// Letters of pictures; see LICENSE.txt beside it.
const FONT: &[u8] = include_bytes!("plot/dejavu_sans.ttf");
const FAMILY: &str = "sans-serif";
/// Points of a curve beyond which neighbours are averaged.
const MOST_POINTS: usize = 2_000;

/// What curves are drawn over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Axis {
    /// Steps.
    #[default]
    Step,
    /// Tokens trained on.
    Tokens,
    /// Hours since the run's first line, pauses and all.
    Hours,
}

impl std::str::FromStr for Axis {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "step" => Ok(Axis::Step),
            "tokens" => Ok(Axis::Tokens),
            "hours" => Ok(Axis::Hours),
            _ => Err(format!("`{text}` is none of step, tokens, hours")),
        }
    }
}

impl Axis {
    fn name(self) -> &'static str {
        match self {
            Axis::Step => "step",
            Axis::Tokens => "tokens",
            Axis::Hours => "hours",
        }
    }
}

/// A line of a panel.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// The run's name, for the legend.
    pub name: String,
    /// Which of the runs: its colour.
    pub run: usize,
    /// Whether its points are marked: where there are few.
    pub marked: bool,
    /// Where it goes.
    pub points: Vec<(f64, f64)>,
}

/// A frame with curves.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// What is drawn.
    pub title: String,
    /// The curves.
    pub curves: Vec<Curve>,
}

/// Form of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Picture {
    /// Text and lines.
    Svg,
    /// Pixels.
    Png,
}

/// A panel for each metric named, with a curve for each run that has it; `runs` are names and lines.
///
/// # Errors
/// If there is no metric of a name.
pub fn curves(runs: &[(String, Vec<Metrics>)], metrics: &[String], axis: Axis) -> Result<Vec<Panel>> {
    let mut panels = Vec::new();
    for name in metrics {
        let Some(metric) = METRICS.iter().find(|m| m.name == name) else {
            let names: Vec<&str> = METRICS.iter().map(|m| m.name).collect();
            return Err(Error::Invalid(format!("there is no metric {name}; there are {}", names.join(", "))));
        };
        let mut curves = Vec::new();
        for (run, (name, lines)) in runs.iter().enumerate() {
            let (begin, mut tokens) = (lines.first().map_or(0.0, |m| m.wall), 0.0);
            let mut points = Vec::new();
            for line in lines {
                // Lines between two steps are of the step before them.
                tokens = line.tokens.unwrap_or(tokens);
                let x = match axis {
                    Axis::Step => line.step as f64,
                    Axis::Tokens => tokens,
                    Axis::Hours => (line.wall - begin) / 3600.0,
                };
                points.extend((metric.get)(line).filter(|y| y.is_finite()).map(|y| (x, y)));
            }
            let marked = points.len() < 50;
            if !points.is_empty() {
                curves.push(Curve { name: name.clone(), run, marked, points: thinned(points) });
            }
        }
        panels.push(Panel { title: format!("{name}: {}", metric.what), curves });
    }
    Ok(panels)
}

/// At most [`MOST_POINTS`] points: means of neighbours.
fn thinned(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let each = points.len().div_ceil(MOST_POINTS).max(1);
    let mean = |chunk: &[(f64, f64)]| {
        let (x, y) = chunk.iter().fold((0.0, 0.0), |(x, y), p| (x + p.0, y + p.1));
        (x / chunk.len() as f64, y / chunk.len() as f64)
    };
    points.chunks(each).map(mean).collect()
}

/// Draws panels below each other, `size` pixels wide and high in all; with `log`, values by their logarithm, and those
/// that have none left out.
///
/// # Errors
/// If there is nothing to draw, or no room.
pub fn picture(panels: &[Panel], axis: Axis, log: bool, size: (u32, u32), form: Picture) -> Result<Vec<u8>> {
    if panels.iter().all(|panel| panel.curves.is_empty()) {
        return Err(Error::Invalid("none of these runs has any of these metrics; there is nothing to draw".into()));
    }
    let failed = |what: String| Error::Invalid(format!("the picture cannot be drawn: {what}"));
    register_font(FAMILY, FontStyle::Normal, FONT).map_err(|_| failed("the font is damaged".into()))?;
    match form {
        Picture::Svg => {
            let mut text = String::new();
            {
                let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
                draw(&area, panels, axis, log).map_err(failed)?;
                area.present().map_err(|e| failed(e.to_string()))?;
            }
            Ok(text.into_bytes())
        }
        Picture::Png => {
            let mut pixels = vec![0; 3 * size.0 as usize * size.1 as usize];
            {
                let area = BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area();
                draw(&area, panels, axis, log).map_err(failed)?;
                area.present().map_err(|e| failed(e.to_string()))?;
            }
            let mut bytes = Vec::new();
            let mut encoder = png::Encoder::new(&mut bytes, size.0, size.1);
            encoder.set_color(png::ColorType::Rgb);
            let mut writer = encoder.write_header().map_err(|e| failed(e.to_string()))?;
            writer.write_image_data(&pixels).map_err(|e| failed(e.to_string()))?;
            writer.finish().map_err(|e| failed(e.to_string()))?;
            Ok(bytes)
        }
    }
}

type Area<'a, B> = DrawingArea<B, Shift>;

fn draw<B: DrawingBackend>(area: &Area<'_, B>, panels: &[Panel], axis: Axis, log: bool) -> Result<(), String> {
    let text = |e: DrawingAreaErrorKind<B::ErrorType>| e.to_string();
    area.fill(&WHITE).map_err(text)?;
    let parts = area.split_evenly((panels.len(), 1));
    panels.iter().zip(&parts).try_for_each(|(panel, part)| draw_panel(part, panel, axis, log).map_err(text))
}

fn draw_panel<B: DrawingBackend>(
    area: &Area<'_, B>,
    panel: &Panel,
    axis: Axis,
    log: bool,
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    // Logarithms are drawn, and labelled by what they are of.
    let place = |(x, y): (f64, f64)| if log { (y > 0.0).then(|| (x, y.log10())) } else { Some((x, y)) };
    let placed: Vec<Vec<(f64, f64)>> =
        panel.curves.iter().map(|c| c.points.iter().copied().filter_map(place).collect()).collect();
    let all = || placed.iter().flatten();
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, (FAMILY, 17))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(around(all().map(|p| p.0), 0.0), around(all().map(|p| p.1), 0.04))?;
    let label = |y: &f64| if log { number(10f64.powf(*y)) } else { number(*y) };
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(0xdd, 0xdd, 0xdd))
        .label_style((FAMILY, 13))
        .x_desc(axis.name())
        .x_label_formatter(&|x| number(*x))
        .y_label_formatter(&label)
        .draw()?;
    for (curve, points) in panel.curves.iter().zip(&placed) {
        let colour = COLOURS[curve.run % COLOURS.len()];
        let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
        chart
            .draw_series(line)?
            .label(&curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        if curve.marked {
            chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, colour.filled())))?;
        }
    }
    if !panel.curves.is_empty() {
        let style = RGBColor(0xbb, 0xbb, 0xbb);
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(style)
            .label_font((FAMILY, 13))
            .draw()?;
    }
    Ok(())
}

/// From the least to the most, and a share of that beyond; never nothing.
fn around(values: impl Iterator<Item = f64>, beyond: f64) -> Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
    if low > high {
        return 0.0..1.0;
    }
    let span = if high > low { high - low } else { low.abs().max(1.0) * 0.1 };
    let margin = if high > low { beyond * span } else { span };
    low - margin..high + margin
}

/// A number as short as it can be told: 0.25, 1.5k, 2.1e-4.
fn number(value: f64) -> String {
    let trimmed = |text: String| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    };
    match value.abs() {
        0.0 => "0".into(),
        size if size >= 1e10 => format!("{value:.2e}"),
        size if size >= 1e9 => trimmed(format!("{:.2}", value / 1e9)) + "G",
        size if size >= 1e6 => trimmed(format!("{:.2}", value / 1e6)) + "M",
        size if size >= 1e4 => trimmed(format!("{:.2}", value / 1e3)) + "k",
        size if size < 1e-3 => format!("{value:.2e}"),
        _ => trimmed(format!("{value:.4}")),
    }
}

#[cfg(test)]
#[path = "plot_tests.rs"]
mod tests;
