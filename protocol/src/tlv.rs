//! Tag–length–value fields: `u16` tag, `u16` length, value, little-endian, no padding.
//!
//! A reader skips tags that it does not know, so that facts can grow without a new version.

/// Length of a field's tag and length.
pub const FIELD_HEAD: usize = 4;

/// Why bytes are no fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlvError {
    /// The bytes end inside a field's tag or length.
    #[error("field head is cut off")]
    Head,
    /// The bytes end inside a field's value.
    #[error("field {tag:#06x} announces {length} bytes, but {left} are left")]
    Value {
        /// Tag of the field.
        tag: u16,
        /// Length that it announces.
        length: u16,
        /// Bytes that are there.
        left: usize,
    },
    /// A known field has the wrong length for its type.
    #[error("field {tag:#06x} cannot be {length} bytes long")]
    Length {
        /// Tag of the field.
        tag: u16,
        /// Length that it has.
        length: usize,
    },
    /// A text field is not UTF-8.
    #[error("field {0:#06x} is not UTF-8")]
    Text(u16),
    /// A field that must be there is not.
    #[error("field {0:#06x} is missing")]
    Missing(u16),
    /// A value outside what its field can mean.
    #[error("field {tag:#06x} cannot be {value}")]
    Range {
        /// Tag of the field.
        tag: u16,
        /// Value that it has.
        value: u64,
    },
}

/// One field of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// What it means.
    pub tag: u16,
    /// Its bytes.
    pub value: &'a [u8],
}

impl<'a> Field<'a> {
    fn array<const N: usize>(&self) -> Result<[u8; N], TlvError> {
        self.value
            .try_into()
            .map_err(|_| TlvError::Length { tag: self.tag, length: self.value.len() })
    }

    /// The value as a byte.
    ///
    /// # Errors
    /// [`TlvError::Length`] if it is not one byte long; likewise below.
    pub fn u8(&self) -> Result<u8, TlvError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// The value as a 16-bit number.
    ///
    /// # Errors
    /// [`TlvError::Length`].
    pub fn u16(&self) -> Result<u16, TlvError> {
        self.array().map(u16::from_le_bytes)
    }

    /// The value as a 32-bit number.
    ///
    /// # Errors
    /// [`TlvError::Length`].
    pub fn u32(&self) -> Result<u32, TlvError> {
        self.array().map(u32::from_le_bytes)
    }

    /// The value as a 64-bit number.
    ///
    /// # Errors
    /// [`TlvError::Length`].
    pub fn u64(&self) -> Result<u64, TlvError> {
        self.array().map(u64::from_le_bytes)
    }

    /// The value as text.
    ///
    /// # Errors
    /// [`TlvError::Text`] if it is not UTF-8.
    pub fn text(&self) -> Result<&'a str, TlvError> {
        core::str::from_utf8(self.value).map_err(|_| TlvError::Text(self.tag))
    }
}

/// Walks over the fields of a body.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The fields in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been read: after a field that says "the rest is the message".
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next field, or `None` at the end.
    ///
    /// # Errors
    /// The bytes end inside a field. The walk is over then.
    pub fn next_field(&mut self) -> Result<Option<Field<'a>>, TlvError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let Some((&[t0, t1, l0, l1], after)) = self.rest.split_first_chunk::<FIELD_HEAD>() else {
            self.rest = &[];
            return Err(TlvError::Head);
        };
        let tag = u16::from_le_bytes([t0, t1]);
        let length = u16::from_le_bytes([l0, l1]);
        let Some((value, rest)) = after.split_at_checked(usize::from(length)) else {
            let left = after.len();
            self.rest = &[];
            return Err(TlvError::Value { tag, length, left });
        };
        self.rest = rest;
        Ok(Some(Field { tag, value }))
    }
}

/// A value does not fit a field: its length is 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes do not fit a field of at most 65535")]
pub struct TooLong(pub usize);

/// Appends a field.
///
/// # Errors
/// [`TooLong`] if the value is longer than 65,535 bytes; nothing is appended then.
pub fn put(out: &mut Vec<u8>, tag: u16, value: &[u8]) -> Result<(), TooLong> {
    let length = u16::try_from(value.len()).map_err(|_| TooLong(value.len()))?;
    out.extend_from_slice(&tag.to_le_bytes());
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(value);
    Ok(())
}

/// Appends a field of fixed size.
pub fn put_array<const N: usize>(out: &mut Vec<u8>, tag: u16, value: [u8; N]) {
    const { assert!(N <= u16::MAX as usize) };
    out.extend_from_slice(&tag.to_le_bytes());
    out.extend_from_slice(&(N as u16).to_le_bytes());
    out.extend_from_slice(&value);
}

/// Appends a text, cut to [`MAX_TEXT`](crate::limits::MAX_TEXT) bytes at a character's boundary.
pub fn put_text(out: &mut Vec<u8>, tag: u16, text: &str) {
    let mut end = text.len().min(crate::limits::MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let value = text.as_bytes().get(..end).unwrap_or_default();
    // Cannot be too long: MAX_TEXT is below 65,536.
    let _ = put(out, tag, value);
}

/// Appends a field whose value is what `write` appends.
///
/// # Errors
/// [`TooLong`] if `write` appended more than 65,535 bytes; the field is taken back then.
pub fn nested(
    out: &mut Vec<u8>,
    tag: u16,
    write: impl FnOnce(&mut Vec<u8>),
) -> Result<(), TooLong> {
    let start = out.len();
    out.extend_from_slice(&tag.to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    write(out);
    let length = out.len() - start - FIELD_HEAD;
    let Ok(short) = u16::try_from(length) else {
        out.truncate(start);
        return Err(TooLong(length));
    };
    if let Some(place) = out.get_mut(start + 2..start + FIELD_HEAD) {
        place.copy_from_slice(&short.to_le_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fields_come_back_as_they_were_put(fields in proptest::collection::vec((any::<u16>(), proptest::collection::vec(any::<u8>(), 0..300)), 0..20)) {
            let mut bytes = Vec::new();
            for (tag, value) in &fields {
                put(&mut bytes, *tag, value).unwrap();
            }
            let mut read = Fields::new(&bytes);
            for (tag, value) in &fields {
                prop_assert_eq!(read.next_field().unwrap(), Some(Field { tag: *tag, value }));
            }
            prop_assert_eq!(read.next_field(), Ok(None));
        }

        #[test]
        fn no_bytes_make_the_reader_loop_or_read_past_the_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut read = Fields::new(&bytes);
            let mut seen = 0;
            while let Ok(Some(field)) = read.next_field() {
                seen += FIELD_HEAD + field.value.len();
            }
            prop_assert!(seen <= bytes.len());
        }
    }

    #[test]
    fn a_value_over_sixteen_bits_is_refused_and_leaves_nothing_behind() {
        let mut out = vec![1, 2, 3];
        assert_eq!(put(&mut out, 1, &vec![0; 65_536]), Err(TooLong(65_536)));
        assert_eq!(nested(&mut out, 1, |w| w.resize(w.len() + 65_536, 0)), Err(TooLong(65_536)));
        assert_eq!(out, [1, 2, 3]);
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let mut out = Vec::new();
        put_text(&mut out, 1, &"ä".repeat(4000));
        let field = Fields::new(&out).next_field().unwrap().unwrap();
        assert_eq!(field.text().unwrap().len(), crate::limits::MAX_TEXT);
    }
}
