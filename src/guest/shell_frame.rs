//! The messages of an interactive shell: each WebSocket message contains one frame of a type, a length and a payload.
//! Out of scope: the terminal, the WebSocket.

use bytes::{BufMut, Bytes, BytesMut};

/// Length of the type and the length of the payload.
const HEAD: usize = 5;

/// The maximum length of a message that is sent, in bytes; other clients do not read longer ones.
pub const MESSAGE_LIMIT: usize = 32 << 10;

/// The maximum length of the data of one frame.
pub const DATA_LIMIT: usize = MESSAGE_LIMIT - HEAD;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShellFrame {
    /// Bytes from or for the terminal.
    Data(Bytes),
    /// The size of the terminal, from the client.
    Window {
        /// Columns.
        columns: u32,
        /// Rows.
        rows: u32,
    },
    /// The client leaves.
    Shutdown,
    /// The client is alive.
    Heartbeat,
    /// The shell has ended.
    Close,
    /// The exit status of the shell, before [`Self::Close`]. Other clients ignore it.
    ExitStatus(i32),
}

const DATA: u8 = 1;
const WINDOW: u8 = 2;
const SHUTDOWN: u8 = 3;
const HEARTBEAT: u8 = 4;
const CLOSE: u8 = 5;
const EXIT_STATUS: u8 = 0x80;

impl ShellFrame {
    /// The message. Data is at most [`DATA_LIMIT`] bytes.
    pub fn encode(&self) -> Bytes {
        let mut payload = BytesMut::new();
        let kind = match self {
            Self::Data(data) => {
                payload.extend_from_slice(data);
                DATA
            }
            Self::Window { columns, rows } => {
                payload.put_u32(*columns);
                payload.put_u32(*rows);
                WINDOW
            }
            Self::Shutdown => SHUTDOWN,
            Self::Heartbeat => HEARTBEAT,
            Self::Close => CLOSE,
            Self::ExitStatus(status) => {
                payload.put_i32(*status);
                EXIT_STATUS
            }
        };
        let mut message = BytesMut::with_capacity(HEAD + payload.len());
        message.put_u8(kind);
        message.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        message.extend_from_slice(&payload);
        message.freeze()
    }

    /// The frame in a message; `None` for an unknown type, a wrong length or a wrong payload, which are ignored.
    pub fn decode(message: &Bytes) -> Option<Self> {
        let head = message.first_chunk::<HEAD>()?;
        let [kind, length @ ..] = *head;
        let payload = message.slice(HEAD..);
        if payload.len() != usize::try_from(u32::from_be_bytes(length)).ok()? {
            return None;
        }
        match (kind, payload.as_ref()) {
            (DATA, _) => Some(Self::Data(payload)),
            (WINDOW, [a, b, c, d, e, f, g, h]) => Some(Self::Window {
                columns: u32::from_be_bytes([*a, *b, *c, *d]),
                rows: u32::from_be_bytes([*e, *f, *g, *h]),
            }),
            (SHUTDOWN, _) => Some(Self::Shutdown),
            (HEARTBEAT, _) => Some(Self::Heartbeat),
            (CLOSE, _) => Some(Self::Close),
            (EXIT_STATUS, [a, b, c, d]) => {
                Some(Self::ExitStatus(i32::from_be_bytes([*a, *b, *c, *d])))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame() -> impl Strategy<Value = ShellFrame> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..DATA_LIMIT)
                .prop_map(|data| ShellFrame::Data(data.into())),
            any::<(u32, u32)>().prop_map(|(columns, rows)| ShellFrame::Window { columns, rows }),
            Just(ShellFrame::Shutdown),
            Just(ShellFrame::Heartbeat),
            Just(ShellFrame::Close),
            any::<i32>().prop_map(ShellFrame::ExitStatus),
        ]
    }

    #[test]
    fn the_size_of_a_window_is_big_endian_after_type_and_length() {
        let message = ShellFrame::Window {
            columns: 80,
            rows: 24,
        };
        assert_eq!(
            message.encode().as_ref(),
            [2, 0, 0, 0, 8, 0, 0, 0, 80, 0, 0, 0, 24]
        );
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(frame in frame()) {
            let message = frame.encode();
            prop_assert!(message.len() <= MESSAGE_LIMIT);
            prop_assert_eq!(ShellFrame::decode(&message), Some(frame));
        }

        #[test]
        fn any_message_is_decoded_or_ignored(message in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = ShellFrame::decode(&message.into());
        }
    }
}
