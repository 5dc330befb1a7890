//! Collectives in flight: each begins where it stands in the graph, and ends before the first step that needs what it brings,
//! or changes what it reads. What it reads and brings is in use from the one to the other, so that the memory plan gives
//! none of it to anybody else.

use super::layout;
use super::place::{Places, Storage};
use crate::graph::{Collective, Graph, NodeId, Value};
use serde::Serialize;
use std::collections::VecDeque;

/// Collectives in flight at most: one's bytes come from the device while ranks meet over another's and a third's go back.
const MOST: usize = 4;
/// And their bytes on the host, but for one that has more.
const BYTES: u64 = 256 << 20;

/// What a step is of a collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// All of it.
    Whole,
    /// Its bytes leave the device, and ranks meet over them while it goes on.
    Begin,
    /// What came of it reaches the device.
    End,
}

/// A node's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) node: NodeId,
    pub(super) phase: Phase,
}

/// A range of a storage, and whether it is written.
struct Touch {
    storage: Storage,
    start: u64,
    end: u64,
    written: bool,
}

impl Touch {
    /// True if one of two must wait for the other.
    fn conflicts(&self, other: &Touch) -> bool {
        let meets = self.storage == other.storage && self.start < other.end && other.start < self.end;
        meets && (self.written || other.written)
    }
}

/// A collective in flight.
struct Flight {
    node: NodeId,
    touches: Vec<Touch>,
    /// The larger of what leaves the device and what comes.
    bytes: u64,
}

/// Ends the oldest collectives in flight, so many: ranks meet in the order in which they began, and so they end.
fn land(count: usize, flights: &mut VecDeque<Flight>, turns: &mut Vec<Turn>) {
    for Flight { node, .. } in flights.drain(..count) {
        match turns.last_mut().filter(|last| last.node == node) {
            Some(begun) => begun.phase = Phase::Whole,
            None => turns.push(Turn { node, phase: Phase::End }),
        }
    }
}

/// The steps of a graph in order, and of a collective both ends where others stand between them.
pub(super) fn turns(graph: &Graph, places: &Places) -> Vec<Turn> {
    let (mut turns, mut flights) = (Vec::new(), VecDeque::<Flight>::new());
    for node in layout::steps(graph) {
        let touches = touches(graph, places, node);
        let waits = |flight: &Flight| flight.touches.iter().any(|t| touches.iter().any(|own| own.conflicts(t)));
        let last = flights.iter().rposition(waits).map_or(0, |last| last + 1);
        land(last, &mut flights, &mut turns);
        // What goes to one rank alone goes in pieces, and its taker's graph need not leave room for a flight.
        let alone = |what| matches!(what, Collective::Send { .. } | Collective::Receive { .. });
        let meet = graph.node(node).op().and_then(|op| op.collective());
        let meets = meet.is_some_and(|meet| !alone(meet.what));
        if meets {
            let bytes = touches.iter().map(|touch| touch.end - touch.start).max().unwrap_or(0);
            while flights.len() == MOST
                || !flights.is_empty() && flights.iter().map(|f| f.bytes).sum::<u64>() + bytes > BYTES
            {
                land(1, &mut flights, &mut turns);
            }
            flights.push_back(Flight { node, touches, bytes });
        }
        turns.push(Turn { node, phase: if meets { Phase::Begin } else { Phase::Whole } });
    }
    land(flights.len(), &mut flights, &mut turns);
    turns
}

/// What a node reads and writes.
fn touches(graph: &Graph, places: &Places, id: NodeId) -> Vec<Touch> {
    let (node, outputs) = (graph.node(id), graph.op_node(id).outputs);
    let in_place = node.op().map(|op| op.writes()).unwrap_or_default();
    let touch = |value: Value, written: bool| {
        let place = places[&value];
        Touch { storage: place.storage, start: place.offset, end: place.offset + graph.ty(value).bytes(), written }
    };
    let inputs = node.inputs.iter().enumerate().map(|(i, &value)| touch(value, in_place.contains(&i)));
    inputs.chain(outputs.into_iter().map(|value| touch(value, true))).collect()
}
