//! Extractors for axum handlers: the posted message, decoded where it is asked for.

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;
use serde::de::DeserializeOwned;
use vestibule_protocol::codec::DecodeError;

use crate::connection_info::ConnectionInfo;
use crate::inbox::Chain;
use crate::message::Message;

/// The message that was posted with a request's connection, as a `T`:
/// `Extension(Message(reqno)): Extension<Message<u64>>`.
///
/// It is decoded for each request that asks for it. After
/// [`WorkerScope::message::<T>()`](crate::WorkerScope::message) axum's own `Extension` does as well,
/// and what cannot be decoded never gets as far as a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extension<T>(pub T);

/// Why a handler did not get the posted message. The client sees a plain 500; the cause is logged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MessageRejection {
    /// The request did not come through vestibule.
    #[error("the request's connection was not handed over by a router")]
    NoConnection,
    /// It is of another type or format.
    #[error("the posted message is not what the handler expects")]
    Undecodable(#[from] DecodeError),
}

impl IntoResponse for MessageRejection {
    fn into_response(self) -> Response {
        tracing::error!(error = %Chain(&self), "no posted message for a handler");
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    }
}

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Message<T> {
    type Rejection = MessageRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MessageRejection> {
        let info = parts
            .extensions
            .get::<ConnectInfo<ConnectionInfo>>()
            .map(|ConnectInfo(info)| info)
            .ok_or(MessageRejection::NoConnection)?;
        Ok(Self(info.message().decode()?))
    }
}

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Extension<Message<T>> {
    type Rejection = MessageRejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, MessageRejection> {
        Message::from_request_parts(parts, state).await.map(Self)
    }
}
