//! What to compute: operators of static shape, the nodes that apply them, and their gradients as further nodes.
//! It knows no device and no rank.

mod builder;
mod expr;
mod grad;
mod halved;
mod kernel;
mod map;
mod map_pair;
mod node;
mod op;
mod print;
pub(crate) mod rewrite;
mod sum;
mod view;

pub use builder::Graph;
pub use expr::{Binary, Expr, Unary};
pub use grad::{Gradient, Trace, gradients, gradients_in_turn, scaled_gradients, traced_gradients, unit};
pub use halved::Halved;
pub use kernel::{Bind, Constant, Dispatch, Hook, Kernel, Operand, Scalar};
pub(crate) use map::compact;
pub use map::{Map, spread};
pub use map_pair::MapPair;
pub use node::{Kind, Node, NodeId, Value};
pub use op::{Collective, Cost, Io, Meet, Op, OpNode, View};
pub use sum::{SumRows, SumTo};
pub(crate) use view::{BINDING, aligned};
pub use view::{Concat, Detach, Slice};
