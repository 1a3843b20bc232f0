//! What a proxy in front says of its client beside the addresses (PROXY protocol version 2).

use crate::tlv::{self, Field, TlvError};

/// The proxy ended its client's TLS.
pub const TAG_PROXIED_TLS: u16 = 0x0109;
/// Name that the client asked the proxy for; empty: it cannot be told.
pub const TAG_PROXIED_NAME: u16 = 0x010a;
/// Protocol that client and proxy settled on, as it is called in TLS (RFC 7301).
pub const TAG_PROXIED_ALPN: u16 = 0x010b;
/// The proxy's name for the connection.
pub const TAG_PROXIED_ID: u16 = 0x010c;

/// What a proxy in front says of its client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxied {
    /// It ended its client's TLS.
    pub tls: bool,
    /// The name that the client asked for, in lower case, without a dot at its end; empty if what the
    /// proxy says is no name.
    pub server_name: Option<Box<str>>,
    /// The protocol that client and proxy settled on (`h2`, `http/1.1`).
    pub alpn: Option<Box<[u8]>>,
    /// The proxy's name for the connection (`PP2_TYPE_UNIQUE_ID`): opaque bytes, at most 128.
    pub unique_id: Option<Box<[u8]>>,
}

impl Proxied {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        if self.tls {
            tlv::put_array(out, TAG_PROXIED_TLS, []);
        }
        let fields = [
            (TAG_PROXIED_NAME, self.server_name.as_deref().map(str::as_bytes)),
            (TAG_PROXIED_ALPN, self.alpn.as_deref()),
            (TAG_PROXIED_ID, self.unique_id.as_deref()),
        ];
        for (tag, value) in fields {
            if let Some(value) = value {
                // What was read from a field fits one, and a name is far shorter.
                let _ = tlv::put(out, tag, value);
            }
        }
    }

    /// Takes a field, if it is one of these.
    pub(super) fn take(into: &mut Option<Box<Self>>, field: &Field<'_>) -> Result<(), TlvError> {
        let proxied = match field.tag {
            TAG_PROXIED_TLS | TAG_PROXIED_NAME | TAG_PROXIED_ALPN | TAG_PROXIED_ID => {
                into.get_or_insert_default()
            }
            _ => return Ok(()),
        };
        match field.tag {
            TAG_PROXIED_TLS if field.value.is_empty() => proxied.tls = true,
            TAG_PROXIED_TLS => {
                return Err(TlvError::Length { tag: field.tag, length: field.value.len() });
            }
            TAG_PROXIED_NAME => proxied.server_name = Some(field.text()?.into()),
            TAG_PROXIED_ALPN => proxied.alpn = Some(field.value.into()),
            _ => proxied.unique_id = Some(field.value.into()),
        }
        Ok(())
    }
}
