//! A posted message as the program's own type, and the typed mode in which it is decoded before the
//! connection is acknowledged.

use std::sync::Arc;

use http::Extensions;
use serde::de::DeserializeOwned;
use vestibule_protocol::codec::{self, Codec, DecodeError};

/// The message that was posted with a connection, decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Message<T>(pub T);

/// A decoded message whose type only the program knows: it puts itself into a request's extensions.
pub(crate) trait Typed: Send + Sync {
    /// Puts a copy of the message into `extensions`, as [`Message<T>`].
    fn insert(&self, extensions: &mut Extensions);
}

impl<T: Clone + Send + Sync + 'static> Typed for Message<T> {
    fn insert(&self, extensions: &mut Extensions) {
        extensions.insert(self.clone());
    }
}

/// Decodes every posted message as one type.
pub(crate) type Decoder =
    Arc<dyn Fn(Codec, &[u8]) -> Result<Box<dyn Typed>, DecodeError> + Send + Sync>;

/// The decoder of messages of type `T`.
pub(crate) fn decoder<T>() -> Decoder
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    Arc::new(|codec, bytes| {
        codec::decode::<T>(codec, bytes).map(|value| Box::new(Message(value)) as Box<dyn Typed>)
    })
}
