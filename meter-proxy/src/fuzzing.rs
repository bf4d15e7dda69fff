//! What the fuzz targets reach of private rooms: pure readers of bytes that come from clients and providers.
//!
//! No part of the API: it is there with the feature `fuzzing` alone. Not here: anything of its own.
pub use crate::hello::{Speech, read as read_hello};
pub use crate::include_usage::{Hiding, ask};
pub use crate::lane::dns::{EVERYWHERE, answer as dns_answer};
pub use crate::websocket::deflate::Deflate;
pub use crate::websocket::events::{Asked, Heard};
pub use crate::websocket::frames::{Part, Sender};
pub use crate::websocket::reader::{Reader, Unreadable};
