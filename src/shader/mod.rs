//! WGSL text to specialised, validated text: the embedded library, the few directives, and what a shader binds.

mod library;
mod reflect;
mod template;

pub use library::{names, text};
pub use reflect::{Binding, Field, FieldKind, Source};
pub use template::{Constant, Hook, assemble};
