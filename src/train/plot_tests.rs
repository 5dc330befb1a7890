//! Pictures: what is in them, in both forms.

use super::*;

fn runs() -> Vec<(String, Vec<Metrics>)> {
    let line = |step: u64, loss: f64| Metrics {
        step,
        wall: 100.0 + 36.0 * step as f64,
        loss: Some(loss),
        tokens: Some(1e4 * step as f64),
        ..Metrics::default()
    };
    let validation = |step| Metrics { step, wall: 1000.0, validation_loss: Some(2.5), ..Metrics::default() };
    let falling = (1..=300).map(|s| line(s, 5.0 / s as f64));
    vec![
        ("first run".into(), falling.chain([validation(300)]).collect()),
        ("second <run>".into(), (1..=3).map(|s| line(s, 4.0)).collect()),
    ]
}

#[test]
fn curves_are_those_of_the_lines() {
    let names = ["loss".to_string(), "validation_loss".to_string()];
    let panels = curves(&runs(), &names, Axis::Tokens).unwrap();
    assert_eq!((panels[0].curves.len(), panels[1].curves.len()), (2, 1));
    assert_eq!(panels[0].curves[1].points, [(1e4, 4.0), (2e4, 4.0), (3e4, 4.0)]);
    assert_eq!(panels[1].curves[0].points, [(3e6, 2.5)]);
    assert!(panels[0].curves[1].marked && !panels[0].curves[0].marked);
    let hours = curves(&runs(), &names, Axis::Hours).unwrap();
    assert_eq!(hours[0].curves[0].points[100].0, 1.0);
    let error = curves(&runs(), &["los".into()], Axis::Step).unwrap_err().to_string();
    assert!(error.starts_with("there is no metric los; there are loss, smoothed_loss, "), "{error}");
    let many: Vec<(f64, f64)> = (0..100_000).map(|x| (f64::from(x), 1.0)).collect();
    let few = thinned(many);
    assert!(few.len() <= MOST_POINTS && few[0] == (24.5, 1.0), "{:?}", few[0]);
}

#[test]
fn pictures_show_them() {
    let panels = curves(&runs(), &["loss".into(), "validation_loss".into()], Axis::Step).unwrap();
    let svg = String::from_utf8(picture(&panels, Axis::Step, true, (800, 600), Picture::Svg).unwrap()).unwrap();
    for part in ["<svg ", "first run", "second &lt;run&gt;", "validation_loss: cross entropy", "#0072B2", "#D55E00"] {
        assert!(svg.contains(part), "{part}: {svg}");
    }
    assert!(svg.matches("<polyline ").count() >= 3 && svg.contains("\nstep\n"), "{svg}");
    let bytes = picture(&panels, Axis::Step, false, (320, 240), Picture::Png).unwrap();
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height, pixels.len()), (320, 240, 3 * 320 * 240));
    let near = |p: &[u8], c: RGBColor| p.iter().zip([c.0, c.1, c.2]).all(|(a, b)| a.abs_diff(b) < 40);
    for colour in [COLOURS[0], COLOURS[1]] {
        assert!(pixels.chunks_exact(3).filter(|p| near(p, colour)).count() > 20, "{colour:?}");
    }
    assert!(pixels.chunks_exact(3).filter(|p| near(p, WHITE)).count() > 320 * 240 / 2);
    let nothing = curves(&runs(), &["mfu".into()], Axis::Step).unwrap();
    let error = picture(&nothing, Axis::Step, false, (320, 240), Picture::Svg).unwrap_err().to_string();
    assert!(error.contains("there is nothing to draw"), "{error}");
}

#[test]
fn numbers_are_short() {
    for (value, text) in [
        (0.0, "0"),
        (0.25, "0.25"),
        (15_000.0, "15k"),
        (2.5e6, "2.5M"),
        (2.1e-4, "2.10e-4"),
        (-3.0, "-3"),
        (100.0, "100"),
    ] {
        assert_eq!(number(value), text);
    }
}
