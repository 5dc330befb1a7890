//! What models are built of: parameters and where they lie, and layers as functions over a graph.

mod adapted;
mod attention;
mod frozen;
mod layers;
mod lora;
mod lora_parts;
mod moe;
mod params;
mod parts;
mod shared;

pub use adapted::Adapted;
pub use attention::{AttentionKind, AttentionWeights, Heads, KvCache, Positions, attention};
pub use frozen::{Declare, Frozen};
pub use layers::{Linear, MlpWeights, linear, mlp, rms_norm};
pub use lora::{Adapter, BaseDtype, DROPOUT, Gain, Lora, LoraConfig, LoraModule, names_match};
pub use moe::{MoeKind, MoeWeights, Routing, load_balancing_loss, moe, router_z_loss};
pub use params::{Group, Init, PARAMETERS, Page, ParamLayout, ParamSpec, Params};
pub use parts::{Held, Parts, Runs};
