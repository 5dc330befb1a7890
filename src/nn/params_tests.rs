//! The layout's promises, on drawn shapes.

use super::*;
use crate::base::Axis;
use crate::nn::Held;
use proptest::prelude::*;

fn specs(shapes: &[(usize, usize, bool)]) -> Vec<ParamSpec> {
    let spec = |(i, &(rows, columns, decay)): (usize, &(usize, usize, bool))| ParamSpec {
        name: format!("p{i}"),
        shape: [rows, columns].into(),
        decay,
        init: if decay { Init::Normal(0.5) } else { Init::Ones },
    };
    shapes.iter().enumerate().map(spec).collect()
}

proptest! {
    #[test]
    fn pages_hold_every_parameter_once(
        shapes in prop::collection::vec((1usize..40, 1usize..40, any::<bool>()), 1..30),
        page_bytes in 256u64..16_384,
    ) {
        let layout = ParamLayout::new(specs(&shapes), page_bytes);
        let limit = (page_bytes / 4) as usize;
        prop_assert_eq!(layout.specs().len(), shapes.len());
        prop_assert!(layout.specs().windows(2).all(|w| w[0].decay >= w[1].decay));
        let mut next = 0;
        for page in layout.pages() {
            prop_assert_eq!(page.params.start, next);
            next = page.params.end;
            prop_assert!(page.elements % 64 == 0 && (page.elements <= limit || page.params.len() == 1));
            let mut at = 0;
            let mut gaps = page.gaps.iter();
            for (spec, &start) in layout.specs()[page.params.clone()].iter().zip(&page.starts) {
                if at != start {
                    prop_assert_eq!(gaps.next(), Some(&(at, start)));
                }
                prop_assert_eq!(start % 64, 0);
                let (group, _) = page.groups.iter().find(|(_, end)| start < *end).unwrap();
                prop_assert_eq!(*group, Group::of(spec));
                at = start + spec.shape.elements();
            }
            if at != page.elements {
                prop_assert_eq!(gaps.next(), Some(&(at, page.elements)));
            }
            prop_assert_eq!(gaps.next(), None);
            prop_assert_eq!(page.groups.last().unwrap().1, page.elements);
        }
        prop_assert_eq!(next, shapes.len());
    }
}

#[test]
fn fresh_values_depend_on_seed_and_name_only() {
    let shapes = [(9, 7, true), (5, 5, false), (30, 30, true), (3, 3, true)];
    let small = ParamLayout::new(specs(&shapes), 512);
    let large = ParamLayout::new(specs(&shapes), 1 << 20);
    assert!(small.pages().len() > 1 && large.pages().len() == 1);
    let (a, b, c) = (small.init(1), large.init(1), large.init(2));
    for spec in small.specs() {
        let (x, y, z) = (small.tensor(&a, &spec.name), large.tensor(&b, &spec.name), large.tensor(&c, &spec.name));
        assert_eq!(x.unwrap(), y.unwrap());
        assert_eq!(x == z, spec.init == Init::Ones, "{}", spec.name);
        assert!(x.unwrap().iter().all(|x| x.abs() <= 1.5 || spec.init == Init::Ones));
    }
    for page in large.pages() {
        assert!(page.gaps.iter().all(|&(from, to)| b[0][from..to].iter().all(|&x| x == 0.0)));
    }
    let all: Vec<_> = large.tensors(&b).map(|(spec, data)| (spec.name.as_str(), data.len())).collect();
    assert_eq!(all, [("p0", 63), ("p2", 900), ("p3", 9), ("p1", 25)]);
}

#[test]
fn the_spread_is_that_of_a_cut_normal() {
    let spec = ParamSpec { name: "w".into(), shape: [200, 200].into(), decay: true, init: Init::Normal(0.02) };
    let data = ParamLayout::new(vec![spec], 1 << 20).init(3).remove(0);
    let n = data.len() as f64;
    let mean = data.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let std = (data.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n).sqrt();
    // 0.98658 is the deviation of a standard normal cut at three; its own error here is 0.35 %, so this is four of them.
    assert!(mean.abs() < 4.0 * 0.02 / n.sqrt() && (std / (0.02 * 0.98658) - 1.0).abs() < 0.014, "{mean} {std}");
}

#[test]
fn views_are_named_after_their_parameters() {
    let layout = ParamLayout::new(specs(&[(9, 7, true), (5, 5, false)]), 1 << 20);
    let mut g = Graph::new();
    let params = g.scope("anywhere", |g| layout.declare(g)).unwrap();
    assert_eq!(g.node(params.pages[0].node).name, "param.0");
    assert_eq!(g.node(params.get("p1").unwrap().node).name, "p1");
    assert_eq!(g.dims(params.views[0]), [9, 7]);
    assert_eq!(params.get("q").unwrap_err().to_string(), "graph: there is no parameter q");
}

#[test]
fn kinds_share_no_page_and_groups_adjoin() {
    let shapes = [(9, 7, true), (5, 5, false), (30, 30, true), (3, 3, true), (8, 8, true)];
    // Every second parameter is of the other kind, the last has settings of its own.
    let group = |spec: &ParamSpec| {
        let i: usize = spec.name[1..].parse().unwrap();
        Group { kind: (i % 2) as u8, settings: u16::from(i == 4), ..Group::of(spec) }
    };
    let layout = ParamLayout::grouped(specs(&shapes), 1 << 20, None, group);
    let names: Vec<_> = layout.specs().iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["p0", "p2", "p4", "p3", "p1"]);
    let groups: Vec<Vec<_>> = layout.pages().iter().map(|p| p.groups.clone()).collect();
    let of = |kind, rest, settings| Group { kind, rest, settings };
    assert_eq!(
        groups,
        [vec![(of(0, 0, 0), 64 + 960), (of(0, 0, 1), 64 + 960 + 64)], vec![(of(1, 0, 0), 256), (of(1, 1, 0), 320)]]
    );
}

/// Moments of a block have one scale: what ranks hold alike shares none with what they do not.
#[test]
fn no_block_is_of_parameters_that_lie_otherwise_over_the_ranks() {
    let names = ["table", "router", "q", "q.bias", "gain", "k.bias", "gate", "last"];
    let spec = |name: &&str| ParamSpec {
        name: name.to_string(),
        shape: if name.contains('.') || name.starts_with("gain") { [10].into() } else { [10, 7].into() },
        decay: !name.contains('.') && !name.starts_with("gain"),
        init: Init::Zeros,
    };
    let held = |spec: &ParamSpec| match spec.name.as_str() {
        "router" | "gain" => Held::default().at([1]),
        "table" => Held::default().split(0, Axis::Tensor).at([0, 1]),
        _ => Held::default().split(0, Axis::Tensor).at([1]),
    };
    let mesh = "tensor=2,pipeline=2".parse().unwrap();
    let parts = Arc::new(Parts::new(names.iter().map(spec).collect(), mesh, 3, held));
    let layout = ParamLayout::grouped(parts.specs(), 1 << 20, Some(parts.clone()), Group::of);
    let blocks = |spec: &ParamSpec| {
        let (page, start) = layout.place(&spec.name).unwrap();
        (page, start / GROUP_ALIGN..(start + spec.shape.elements()).div_ceil(GROUP_ALIGN))
    };
    let mut shared = 0;
    for (i, a) in layout.specs().iter().enumerate() {
        for b in &layout.specs()[..i] {
            let ((page, a_has), (other, b_has)) = (blocks(a), blocks(b));
            if page == other && a_has.start < b_has.end && b_has.start < a_has.end {
                shared += 1;
                assert!(parts.lie_alike(&a.name, &b.name), "{} and {} share a block", a.name, b.name);
            }
        }
    }
    // The three matrices that lie alike, one after another, need not be apart.
    assert_eq!(shared, 3);
}
