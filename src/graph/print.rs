//! The graph as text, one node a line.

use super::Graph;
use std::fmt;

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, node) in self.nodes().iter().enumerate() {
            let inputs: Vec<String> = node
                .inputs
                .iter()
                .map(|v| if v.output == 0 { format!("%{}", v.node.0) } else { format!("%{}.{}", v.node.0, v.output) })
                .collect();
            let outputs: Vec<String> = node.outputs.iter().map(ToString::to_string).collect();
            writeln!(f, "%{i} = {}({}) : {}  # {}", node.op_name(), inputs.join(", "), outputs.join(", "), node.name)?;
        }
        for (name, value) in self.outputs() {
            writeln!(f, "output {name} = %{}.{}", value.node.0, value.output)?;
        }
        Ok(())
    }
}
