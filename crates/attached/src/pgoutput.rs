//! The messages of PostgreSQL's output plugin `pgoutput`, protocol version 1, in text format.

/// The message is malformed.
#[derive(Debug, thiserror::Error)]
#[error("a message of pgoutput cannot be read")]
pub(crate) struct Malformed;

/// A column's value in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'data> {
    Null,
    /// Not sent, because an update did not change it and it is stored out of line.
    Unchanged,
    Text(&'data str),
}

/// The values of a row in the order of the table's columns.
pub(crate) type Tuple<'data> = Vec<Value<'data>>;

/// One message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum OutputMessage<'data> {
    /// Begin of the transaction with this number.
    Begin(u32),
    Commit,
    /// The columns of a table with the numbers of their types. Comes before the table's first
    /// change and after each change of its columns.
    Relation {
        columns: Vec<(&'data str, u32)>,
    },
    Insert(Tuple<'data>),
    /// The old row is present if its key has changed, or if all of it is the key.
    Update {
        old: Option<Tuple<'data>>,
        new: Tuple<'data>,
    },
    /// The key of the old row, and perhaps its other columns.
    Delete(Tuple<'data>),
    Truncate,
    /// A message about something other than rows.
    Other,
}

impl<'data> OutputMessage<'data> {
    pub(crate) fn read(data: &'data [u8]) -> Result<Self, Malformed> {
        let mut input = Input(data);
        Ok(match input.byte()? {
            b'B' => {
                // The commit's position in the log, and its time.
                input.take(16)?;
                Self::Begin(input.number()?)
            }
            b'C' => Self::Commit,
            b'R' => {
                input.number()?;
                input.text()?;
                input.text()?;
                // The replica identity.
                input.byte()?;
                let count = input.short()?;
                let columns = (0..count).map(|_| {
                    input.byte()?;
                    let name = input.text()?;
                    let form = input.number()?;
                    // The type's modifier.
                    input.number()?;
                    Ok((name, form))
                });
                Self::Relation { columns: columns.collect::<Result<_, _>>()? }
            }
            b'I' => {
                input.number()?;
                input.expect(b'N')?;
                Self::Insert(input.tuple()?)
            }
            b'U' => {
                input.number()?;
                let mut old = None;
                let mut part = input.byte()?;
                if matches!(part, b'K' | b'O') {
                    old = Some(input.tuple()?);
                    part = input.byte()?;
                }
                if part != b'N' {
                    return Err(Malformed);
                }
                Self::Update { old, new: input.tuple()? }
            }
            b'D' => {
                input.number()?;
                input.byte()?;
                Self::Delete(input.tuple()?)
            }
            b'T' => Self::Truncate,
            _ => Self::Other,
        })
    }
}

struct Input<'data>(&'data [u8]);

impl<'data> Input<'data> {
    fn take(&mut self, count: usize) -> Result<&'data [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        let (byte, rest) = self.0.split_first().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*byte)
    }

    fn expect(&mut self, byte: u8) -> Result<(), Malformed> {
        if self.byte()? == byte { Ok(()) } else { Err(Malformed) }
    }

    fn short(&mut self) -> Result<u16, Malformed> {
        self.take(2)?.try_into().map(u16::from_be_bytes).map_err(|_| Malformed)
    }

    fn number(&mut self) -> Result<u32, Malformed> {
        self.take(4)?.try_into().map(u32::from_be_bytes).map_err(|_| Malformed)
    }

    /// Text that ends with a zero byte.
    fn text(&mut self) -> Result<&'data str, Malformed> {
        let length = self.0.iter().position(|byte| *byte == 0).ok_or(Malformed)?;
        let text = self.take(length)?;
        self.byte()?;
        std::str::from_utf8(text).map_err(|_| Malformed)
    }

    fn tuple(&mut self) -> Result<Tuple<'data>, Malformed> {
        let count = self.short()?;
        let values = (0..count).map(|_| {
            Ok(match self.byte()? {
                b'n' => Value::Null,
                b'u' => Value::Unchanged,
                b't' => {
                    let length = self.number()? as usize;
                    let text = self.take(length)?;
                    Value::Text(std::str::from_utf8(text).map_err(|_| Malformed)?)
                }
                _ => return Err(Malformed),
            })
        });
        values.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update() -> Vec<u8> {
        let mut data = vec![b'U', 0, 0, 0, 7, b'K', 0, 2, b't', 0, 0, 0, 2];
        data.extend(b"idnN");
        data.extend([0, 2, b'u', b't', 0, 0, 0, 1, b'x']);
        data
    }

    #[test]
    fn an_update_has_its_old_key_and_its_new_row() {
        let old = Some(vec![Value::Text("id"), Value::Null]);
        let new = vec![Value::Unchanged, Value::Text("x")];
        assert_eq!(OutputMessage::read(&update()).unwrap(), OutputMessage::Update { old, new });
    }

    /// A message cut at any byte is refused.
    #[test]
    fn a_message_that_is_cut_is_refused() {
        let data = update();
        for length in 0..data.len() {
            assert!(OutputMessage::read(&data[..length]).is_err(), "{length}");
        }
    }
}
