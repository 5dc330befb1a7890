//! Gradients of products of one input whose weights adjoin become one product each: the sum of dYᵢ·Wᵢ towards the input,
//! and the dYᵢᵀ·X towards the weights. For that the dYᵢ lie one after the other, as panels of one matrix ([`PanelMatMul`]).

use super::join::{Part, weights};
use super::place;
use super::rewrite::{Rewrite, ids, operator, uses};
use crate::base::{Limits, TensorType};
use crate::error::Result;
use crate::graph::{Concat, Graph, Io, Kind, Map, NodeId, Op, Slice, Value, View};
use crate::ops::{MOST, MatMul, PanelMatMul, Panelled};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

pub(super) fn join_gradients(graph: &Graph, limits: &Limits) -> Result<Graph> {
    let finder = Finder::new(graph, limits);
    let groups = finder.groups();
    if groups.is_empty() {
        return Ok(graph.clone());
    }
    Writer::new(graph, &groups).write()
}

/// One dYᵢ, and what it goes into.
struct Member {
    /// dYᵢ·Wᵢ, a term of the sum.
    term: NodeId,
    /// The tensor that is moved: dYᵢ before it was reshaped.
    root: Value,
    width: usize,
    /// dYᵢᵀ·X, where it is wanted.
    weight: Option<NodeId>,
}

struct Group {
    /// By their weights' places.
    members: Vec<Member>,
    /// The last node that makes one of the dYᵢ.
    ready: NodeId,
    /// Views of them that stand before that.
    early: Vec<NodeId>,
    /// The addition that ends the sum, and its other terms.
    top: NodeId,
    rest: Vec<Value>,
    towards_input: PanelMatMul,
    towards_weights: Option<PanelMatMul>,
}

struct Finder<'a> {
    graph: &'a Graph,
    limits: &'a Limits,
    uses: HashMap<Value, usize>,
    /// For each value, the nodes that read it.
    readers: HashMap<Value, Vec<NodeId>>,
}

impl<'a> Finder<'a> {
    fn new(graph: &'a Graph, limits: &'a Limits) -> Self {
        let mut readers: HashMap<Value, Vec<NodeId>> = HashMap::new();
        for id in ids(graph) {
            graph.node(id).inputs.iter().for_each(|&v| readers.entry(v).or_default().push(id));
        }
        Finder { graph, limits, uses: uses(graph), readers }
    }

    fn groups(&self) -> Vec<Group> {
        let mut taken: HashSet<Value> = HashSet::new();
        let mut groups = Vec::new();
        for top in ids(self.graph).filter(|&id| self.is_sum(id)) {
            let value = Value { node: top, output: 0 };
            let inner = self.readers.get(&value).is_some_and(|r| r.len() == 1 && self.is_sum(r[0]));
            if inner && self.uses[&value] == 1 {
                continue;
            }
            let mut terms = Vec::new();
            self.terms(top, &mut terms);
            // A sum has one group at most: what one layer's products share.
            let group = self.runs(&terms).into_iter().find_map(|run| self.group(top, &terms, &run));
            if let Some(group) = group.filter(|g| g.members.iter().all(|m| !taken.contains(&m.root))) {
                taken.extend(group.members.iter().map(|m| m.root));
                groups.push(group);
            }
        }
        groups
    }

    fn is_sum(&self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        let is_sum = operator::<Map>(self.graph, id) == Some(&Map::add());
        is_sum && node.inputs.iter().all(|&v| self.graph.ty(v) == &node.outputs[0])
    }

    /// The terms of a sum, through sums that nobody else reads.
    fn terms(&self, id: NodeId, terms: &mut Vec<Value>) {
        for &v in &self.graph.node(id).inputs {
            if self.uses[&v] == 1 && self.is_sum(v.node) {
                self.terms(v.node, terms);
            } else {
                terms.push(v);
            }
        }
    }

    /// dY·W, if a term is that and nothing else reads it.
    fn term(&self, value: Value) -> Option<(&'a MatMul, Part<'a>)> {
        let product: &MatMul = operator(self.graph, value.node)?;
        let plain = *product == MatMul::new(false, false).with(product.operands);
        let part = Part::of(self.graph, self.graph.node(value.node).inputs[1])?;
        (plain && self.uses[&value] == 1).then_some((product, part))
    }

    /// Terms whose weights adjoin, in the order of these.
    fn runs(&self, terms: &[Value]) -> Vec<Vec<Value>> {
        let mut by_place: BTreeMap<(Value, bool, usize), Value> = BTreeMap::new();
        for &term in terms {
            if let Some((product, part)) = self.term(term) {
                by_place.insert((part.whole, product.operands.are_half(), part.slice.start), term);
            }
        }
        let mut runs: Vec<Vec<Value>> = Vec::new();
        let mut end = None;
        for ((whole, half, start), term) in by_place {
            let part = self.term(term).expect("it was one above").1;
            match runs.last_mut().filter(|run| end == Some((whole, half, start)) && run.len() < MOST) {
                Some(run) => run.push(term),
                None => runs.push(vec![term]),
            }
            end = Some((whole, half, part.end()));
        }
        runs.retain(|run| run.len() > 1);
        runs
    }

    fn group(&self, top: NodeId, terms: &[Value], run: &[Value]) -> Option<Group> {
        let graph = self.graph;
        let members: Vec<Member> = run.iter().map(|&term| self.member(term)).collect::<Option<_>>()?;
        let distinct: HashSet<Value> = members.iter().map(|m| m.root).collect();
        let ready = members.iter().map(|m| m.root.node).max()?;
        let first = run.iter().map(|v| v.node).min()?;
        let written = (first.0..top.0).any(|i| graph.node(NodeId(i)).op().is_some_and(|op| !op.writes().is_empty()));
        let mut early = Vec::new();
        let clear = members.iter().all(|m| self.early(m.root, ready, &mut early));
        // Where a term is computed before the next dYᵢ, as of cross entropy's chunks, they are not to wait for each other.
        if distinct.len() < members.len() || written || !clear || ready >= first {
            return None;
        }
        early.sort_unstable();
        early.dedup();
        let (product, _) = self.term(run[0])?;
        let [dy, weight] = [0, 1].map(|i| graph.ty(graph.node(run[0].node).inputs[i]));
        let widths: Vec<usize> = members.iter().map(|m| m.width).collect();
        let columns: usize = widths.iter().sum();
        let rows = dy.shape.rows();
        let flat = TensorType::f32([rows * columns]);
        let whole = TensorType { shape: [columns, weight.shape.last()].into(), dtype: weight.dtype };
        let towards_input = PanelMatMul { product: product.clone(), panelled: Panelled::A, widths: widths.clone() };
        self.has_kernels(&towards_input, &[flat.clone(), whole])?;
        // Either all of the weights' gradients are one product, or none is.
        let towards_weights = members.iter().map(|m| m.weight).collect::<Option<Vec<_>>>().and_then(|products| {
            let x = place::root(graph, graph.node(products[0]).inputs[1]);
            let same = products.iter().all(|&p| place::root(graph, graph.node(p).inputs[1]) == x);
            let product = MatMul::new(true, false).with(product.operands);
            let op = PanelMatMul { product, panelled: Panelled::A, widths };
            let x = graph.ty(graph.node(products[0]).inputs[1]).clone();
            same.then(|| self.has_kernels(&op, &[flat, x]).map(|()| op))?
        });
        let rest = terms.iter().copied().filter(|term| !run.contains(term)).collect();
        Some(Group { members, ready, early, top, rest, towards_input, towards_weights })
    }

    fn has_kernels(&self, op: &PanelMatMul, inputs: &[TensorType]) -> Option<()> {
        let outputs = op.infer(&inputs.iter().collect::<Vec<_>>()).ok()?;
        let io = Io { inputs: inputs.to_vec(), outputs };
        (io.fits(self.limits) && !op.kernels(&io, self.limits).is_empty()).then_some(())
    }

    fn member(&self, term: Value) -> Option<Member> {
        let graph = self.graph;
        let (product, part) = self.term(term)?;
        let dy = graph.node(term.node).inputs[0];
        let root = place::root(graph, dy);
        let source = graph.node(root.node);
        let movable = matches!(source.kind, Kind::Op(_)) && place::view(graph, source).is_none();
        let wanted = graph.outputs().iter().any(|(_, v)| place::root(graph, *v) == root);
        let rows = graph.ty(dy).shape.rows();
        // dYᵀ·X, of which nothing is made but a part of the parameters' gradients.
        let mut weight = None;
        for reader in self.all_readers(root) {
            let node = graph.node(reader);
            if matches!(place::view(graph, node), Some(View::Concat(_))) {
                return None;
            }
            let own = operator::<MatMul>(graph, reader)
                .is_some_and(|m| *m == MatMul::new(true, false).with(product.operands));
            if own && place::root(graph, node.inputs[0]) == root && graph.dims(node.inputs[0]) == [rows, part.rows()] {
                let y = Value { node: reader, output: 0 };
                let readers = self.readers.get(&y).map_or(&[][..], Vec::as_slice);
                let kept = matches!(readers, [r] if operator::<Concat>(graph, *r).is_some()) && self.uses[&y] == 1;
                weight = kept.then_some(reader);
            }
        }
        (movable && !wanted).then_some(Member { term: term.node, root, width: part.rows(), weight })
    }

    /// Nodes that read a value, or a view of all of it, and are not such a view.
    fn all_readers(&self, value: Value) -> Vec<NodeId> {
        let mut found = Vec::new();
        for &reader in self.readers.get(&value).map_or(&[][..], Vec::as_slice) {
            let y = Value { node: reader, output: 0 };
            if self.is_whole_view(reader) { found.extend(self.all_readers(y)) } else { found.push(reader) }
        }
        found
    }

    fn is_whole_view(&self, id: NodeId) -> bool {
        let (node, y) = (self.graph.node(id), Value { node: id, output: 0 });
        node.outputs.len() == 1 && place::root(self.graph, y) != y
    }

    /// Collects the views of a value that stand before `ready`; false if anything else reads it there.
    fn early(&self, value: Value, ready: NodeId, views: &mut Vec<NodeId>) -> bool {
        self.readers.get(&value).map_or(&[][..], Vec::as_slice).iter().filter(|&&r| r <= ready).all(|&reader| {
            views.push(reader);
            self.is_whole_view(reader) && self.early(Value { node: reader, output: 0 }, ready, views)
        })
    }
}

struct Writer<'a> {
    graph: &'a Graph,
    groups: &'a [Group],
    rewrite: Rewrite<'a>,
    /// The matrix in panels of each group, and its gradient of weights.
    panels: Vec<Option<Value>>,
    gradients: Vec<Option<Value>>,
}

impl<'a> Writer<'a> {
    fn new(graph: &'a Graph, groups: &'a [Group]) -> Self {
        let none = || vec![None; groups.len()];
        Writer { graph, groups, rewrite: Rewrite::new(graph), panels: none(), gradients: none() }
    }

    fn write(mut self) -> Result<Graph> {
        let late: HashSet<NodeId> = self.groups.iter().flat_map(|g| g.early.iter().copied()).collect();
        let (mut ready, mut top, mut weight) = (HashMap::<NodeId, Vec<usize>>::new(), HashMap::new(), HashMap::new());
        for (i, group) in self.groups.iter().enumerate() {
            ready.entry(group.ready).or_default().push(i);
            top.insert(group.top, i);
            if group.towards_weights.is_some() {
                weight.extend(group.members.iter().enumerate().filter_map(|(k, m)| Some((m.weight?, (i, k)))));
            }
        }
        for id in ids(self.graph).filter(|id| !late.contains(id)) {
            match (top.get(&id), weight.get(&id)) {
                (Some(&i), _) => self.sum(i)?,
                (_, Some(&(i, k))) => self.weight(i, k)?,
                _ if operator::<Concat>(self.graph, id).is_some() => self.concat(id)?,
                _ => self.rewrite.copy(id)?,
            }
            for &i in ready.get(&id).map_or(&[][..], Vec::as_slice) {
                self.ready(i)?;
            }
        }
        Ok(self.rewrite.finish())
    }

    /// Puts the dYᵢ side by side; who reads one from here on reads it there.
    fn ready(&mut self, i: usize) -> Result<()> {
        let group = &self.groups[i];
        let name = &self.graph.node(group.members[0].term).name;
        let rows = self.graph.ty(group.members[0].root).shape.elements() / group.members[0].width;
        let mut starts = Vec::new();
        let mut elements = 0;
        for member in &group.members {
            starts.push(elements);
            elements += rows * member.width;
        }
        let values: Vec<Value> = group.members.iter().map(|m| self.rewrite.value(m.root)).collect();
        let concat = Arc::new(Concat { starts: starts.clone(), elements });
        let panels = self.rewrite.new.apply_named(concat, &values, format!("{name}.panels"))?[0];
        for (member, start) in group.members.iter().zip(starts) {
            let slice = Arc::new(Slice { start, shape: self.graph.ty(member.root).shape.clone() });
            let own = self.rewrite.new.apply_named(slice, &[panels], format!("{name}.panel"))?[0];
            self.rewrite.put(member.root, own);
        }
        self.panels[i] = Some(panels);
        group.early.iter().try_for_each(|&view| self.rewrite.copy(view))
    }

    /// The sum of all dYᵢ·Wᵢ, and what else is added.
    fn sum(&mut self, i: usize) -> Result<()> {
        let group = &self.groups[i];
        let node = |m: &Member| self.graph.node(m.term);
        let (first, last) = (&group.members[0], &group.members[group.members.len() - 1]);
        let part = |m: &Member| Part::of(self.graph, node(m).inputs[1]).expect("a term has a part of a weight");
        let name = node(first).name.clone();
        let weight = weights(&mut self.rewrite, [&part(first), &part(last)], &name)?;
        let panels = self.panels[i].expect("what is added was made before");
        let op = Arc::new(group.towards_input.clone());
        let sum = self.rewrite.new.apply_named(op, &[panels, weight], name.clone())?[0];
        let shape = self.graph.node(group.top).outputs[0].shape.clone();
        let whole = Arc::new(Slice { start: 0, shape });
        let mut sum = self.rewrite.new.apply_named(whole, &[sum], format!("{name}.sum"))?[0];
        for &term in &group.rest {
            let term = self.rewrite.value(term);
            let name = self.graph.node(group.top).name.clone();
            sum = self.rewrite.new.apply_named(Arc::new(Map::add()), &[sum, term], name)?[0];
        }
        self.rewrite.set(group.top, &[sum]);
        Ok(())
    }

    /// One weight's gradient as a part of all.
    fn weight(&mut self, i: usize, k: usize) -> Result<()> {
        let group = &self.groups[i];
        let id = group.members[k].weight.expect("all members have one");
        let node = self.graph.node(id);
        let all = match self.gradients[i] {
            Some(all) => all,
            None => {
                let op = group.towards_weights.clone().expect("asked by the caller");
                let x = self.rewrite.value(node.inputs[1]);
                let panels = self.panels[i].expect("what is multiplied was made before");
                self.rewrite.new.apply_named(Arc::new(op), &[panels, x], node.name.clone())?[0]
            }
        };
        self.gradients[i] = Some(all);
        let shape = node.outputs[0].shape.clone();
        let start = group.members[..k].iter().map(|m| m.width).sum::<usize>() * shape.last();
        let own =
            self.rewrite.new.apply_named(Arc::new(Slice { start, shape }), &[all], format!("{}.part", node.name))?;
        self.rewrite.set(id, &own);
        Ok(())
    }

    /// A concatenation, whose members that are all of one tensor in order become that tensor.
    fn concat(&mut self, id: NodeId) -> Result<()> {
        let node = self.graph.node(id);
        let concat: &Concat = operator(self.graph, id).expect("asked by the caller");
        let (mut inputs, mut starts) = (Vec::new(), Vec::new());
        let values = self.rewrite.inputs(node);
        let new = &self.rewrite.new;
        let mut at = 0;
        while at < values.len() {
            let whole = operator::<Slice>(new, values[at].node).map(|_| new.node(values[at].node).inputs[0]);
            let count = whole.map_or(0, |whole| members(new, whole, &values[at..], &concat.starts[at..]));
            inputs.push(if count > 0 { whole.expect("it has members") } else { values[at] });
            starts.push(concat.starts[at]);
            at += count.max(1);
        }
        let op = Arc::new(Concat { starts, elements: concat.elements });
        let outputs = self.rewrite.new.apply_named(op, &inputs, node.name.clone())?;
        self.rewrite.set(id, &outputs);
        Ok(())
    }
}

/// How many of the values, the first ones, are all of `whole` in its order and lie as they do in it; 0 if not all of it.
fn members(graph: &Graph, whole: Value, values: &[Value], starts: &[usize]) -> usize {
    let mut end = 0;
    for (count, (&value, &start)) in values.iter().zip(starts).enumerate() {
        let Some(slice) = operator::<Slice>(graph, value.node) else { return 0 };
        let inside = graph.node(value.node).inputs[0] == whole && slice.start == end;
        if !inside || start - starts[0] != end {
            return 0;
        }
        end += slice.shape.elements();
        if end == graph.ty(whole).shape.elements() {
            return count + 1;
        }
    }
    0
}
