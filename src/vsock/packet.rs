//! The header of a packet of a vsock device (virtio 1.2, "Socket Device", `struct virtio_vsock_hdr`). Pure.
//! Out of scope: the meaning of a packet for its connection (`connection`, `mux`); reading it from the memory of a guest (`device`).

/// Length of a header in bytes.
pub const HEADER_BYTES: usize = 44;

/// The maximum length of the data of one packet in bytes, as in Linux (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
pub const MAX_DATA: usize = 64 << 10;

/// `VIRTIO_VSOCK_TYPE_STREAM`: the only socket type of this device.
pub const STREAM: u16 = 1;

/// The address of the host.
pub const HOST_CID: u64 = 2;

/// The address of every guest: it has no meaning outside its VM, because each VM has a device of its own.
pub const GUEST_CID: u64 = 3;

/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: the sender of the packet receives no more data.
pub const SHUT_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: the sender of the packet sends no more data.
pub const SHUT_SEND: u32 = 2;
/// Both directions.
pub const SHUT_BOTH: u32 = SHUT_RECEIVE | SHUT_SEND;

/// The operation of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Requests a connection.
    Request,
    /// Accepts a connection.
    Response,
    /// Ends or refuses a connection.
    Reset,
    /// Ends one or both directions of a connection.
    Shutdown,
    /// Contains data.
    Data,
    /// Contains only the credit, which every packet contains.
    CreditUpdate,
    /// Requests a [`Self::CreditUpdate`].
    CreditRequest,
    /// Not defined by the specification.
    Unknown(u16),
}

impl Op {
    fn from_number(number: u16) -> Self {
        match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            other => Self::Unknown(other),
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
            Self::Unknown(number) => number,
        }
    }
}

/// The header of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Address of the sender.
    pub src_cid: u64,
    /// Address of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Length of the data in bytes.
    pub len: u32,
    /// The socket type, [`STREAM`].
    pub kind: u16,
    /// The operation.
    pub op: Op,
    /// Flags of the operation: [`SHUT_RECEIVE`], [`SHUT_SEND`].
    pub flags: u32,
    /// Size of the sender's receive buffer in bytes.
    pub buf_alloc: u32,
    /// Number of bytes that the sender has taken out of its receive buffer, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// A packet of the host without data and credit.
    pub fn to_guest(src_port: u32, dst_port: u32, op: Op) -> Self {
        Self {
            src_cid: HOST_CID,
            dst_cid: GUEST_CID,
            src_port,
            dst_port,
            len: 0,
            kind: STREAM,
            op,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    /// The header in these bytes. Every content is a header.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            src_cid: u64::from_le_bytes(fields.take()),
            dst_cid: u64::from_le_bytes(fields.take()),
            src_port: u32::from_le_bytes(fields.take()),
            dst_port: u32::from_le_bytes(fields.take()),
            len: u32::from_le_bytes(fields.take()),
            kind: u16::from_le_bytes(fields.take()),
            op: Op::from_number(u16::from_le_bytes(fields.take())),
            flags: u32::from_le_bytes(fields.take()),
            buf_alloc: u32::from_le_bytes(fields.take()),
            fwd_cnt: u32::from_le_bytes(fields.take()),
        }
    }

    /// The bytes of the header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&self.src_cid.to_le_bytes());
        put(&self.dst_cid.to_le_bytes());
        put(&self.src_port.to_le_bytes());
        put(&self.dst_port.to_le_bytes());
        put(&self.len.to_le_bytes());
        put(&self.kind.to_le_bytes());
        put(&self.op.number().to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buf_alloc.to_le_bytes());
        put(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

/// The bytes that are not decoded yet.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// The next field; zeros after the end.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_fields_are_at_the_offsets_of_the_specification() {
        let bytes = std::array::from_fn(|at| at as u8);
        let header = Header::decode(&bytes);
        assert_eq!(header.dst_cid, 0x0f0e_0d0c_0b0a_0908);
        assert_eq!(header.dst_port, 0x1716_1514);
        assert_eq!(header.len, 0x1b1a_1918);
        assert_eq!((header.kind, header.op), (0x1d1c, Op::Unknown(0x1f1e)));
        assert_eq!(header.fwd_cnt, 0x2b2a_2928);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_with_the_same_bytes(bytes: [u8; HEADER_BYTES]) {
            prop_assert_eq!(Header::decode(&bytes).encode(), bytes);
        }
    }
}
