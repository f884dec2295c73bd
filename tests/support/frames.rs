//! Ethernet frames made and read by hand, also such as no honest stack would send.
//! Out of scope: who sends them.

use std::net::Ipv4Addr;

/// What stands before a probe's number in every packet of ours.
const MARK: &[u8; 8] = b"slice-id";

/// IANA protocol numbers.
pub const ICMP: u8 = 1;
/// RFC 9293.
pub const TCP: u8 = 6;
/// RFC 768.
pub const UDP: u8 = 17;

/// "Everybody".
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// An IPv4 packet to be; change what ought to be odd.
#[derive(Clone, Debug)]
pub struct Ip {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: u8,
    pub ttl: u8,
    /// Flags and fragment offset, RFC 791.
    pub fragment: u16,
    pub id: u16,
    /// A multiple of four bytes.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Ip {
    pub fn new(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: Vec<u8>) -> Self {
        Self {
            source,
            destination,
            protocol,
            ttl: 64,
            fragment: 0,
            id: 1,
            options: Vec::new(),
            payload,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let header = 20 + self.options.len();
        let mut bytes = vec![0x40 | (header / 4) as u8, 0];
        bytes.extend(((header + self.payload.len()) as u16).to_be_bytes());
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([self.ttl, self.protocol, 0, 0]);
        bytes.extend(self.source.octets());
        bytes.extend(self.destination.octets());
        bytes.extend(&self.options);
        let sum = checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }
}

/// The payload that says which probe this is.
pub fn mark(id: u32) -> Vec<u8> {
    let mut payload = MARK.to_vec();
    payload.extend(id.to_be_bytes());
    payload
}

/// The first probe number anywhere in a frame.
pub fn marked(frame: &[u8]) -> Option<u32> {
    let at = frame.windows(MARK.len()).position(|w| w == MARK)? + MARK.len();
    let id = frame.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_be_bytes(id))
}

/// A UDP datagram.
pub fn udp(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(from.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    bytes.extend((8 + data.len() as u16).to_be_bytes());
    // No checksum, as RFC 768 allows.
    bytes.extend([0, 0]);
    bytes.extend(data);
    bytes
}

/// A TCP segment: SYN with data, which a server keeps or ignores.
pub fn syn(source: Ipv4Addr, destination: Ipv4Addr, from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(from.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    bytes.extend(1000u32.to_be_bytes());
    bytes.extend(0u32.to_be_bytes());
    bytes.extend([5 << 4, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(data);
    fix_tcp(source, destination, &mut bytes);
    bytes
}

/// Sets the checksum of a TCP segment that was changed.
pub fn fix_tcp(source: Ipv4Addr, destination: Ipv4Addr, segment: &mut [u8]) {
    segment[16..18].fill(0);
    let mut pseudo = Vec::new();
    pseudo.extend(source.octets());
    pseudo.extend(destination.octets());
    pseudo.extend([0, TCP]);
    pseudo.extend((segment.len() as u16).to_be_bytes());
    pseudo.extend(&*segment);
    let sum = checksum(&pseudo);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
}

/// An ICMP echo request.
pub fn echo(id: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![8, 0, 0, 0];
    bytes.extend(id.to_be_bytes());
    bytes.extend(1u16.to_be_bytes());
    bytes.extend(data);
    let sum = checksum(&bytes);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// An Ethernet frame.
pub fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(to);
    frame.extend(from);
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The same frame with a VLAN tag (`0x8100` or `0x88a8`).
pub fn tagged(frame: &[u8], kind: u16, vlan: u16) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    tagged.extend(kind.to_be_bytes());
    tagged.extend(vlan.to_be_bytes());
    tagged.extend(&frame[12..]);
    tagged
}

/// An ARP request (RFC 826).
pub fn who_has(mac: [u8; 6], source: Ipv4Addr, asked: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
    body.extend(mac);
    body.extend(source.octets());
    body.extend([0; 6]);
    body.extend(asked.octets());
    ethernet(BROADCAST, mac, 0x0806, &body)
}

/// A UDP datagram in IPv6, to a global address.
pub fn udp6(to_mac: [u8; 6], mac: [u8; 6], destination: [u8; 16], data: &[u8]) -> Vec<u8> {
    let datagram = udp(1000, 1000, data);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((datagram.len() as u16).to_be_bytes());
    packet.extend([UDP, 64]);
    let mut source = [0; 16];
    source[..2].copy_from_slice(&[0xfd, 0x01]);
    source[15] = 2;
    packet.extend(source);
    packet.extend(destination);
    packet.extend(datagram);
    ethernet(to_mac, mac, 0x86dd, &packet)
}

/// A received IPv4 frame, taken apart.
#[derive(Clone, Debug)]
pub struct Seen {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: u8,
    /// Behind the IP header.
    pub payload: Vec<u8>,
}

/// `None`: no IPv4.
pub fn read(frame: &[u8]) -> Option<Seen> {
    let packet = frame.get(14..)?;
    let ipv4 = frame.get(12..14)? == [8, 0] && packet.first()? >> 4 == 4;
    let header = usize::from(packet.first()? & 15) * 4;
    let address = |at: usize| {
        let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    };
    ipv4.then_some(Seen {
        source: address(12)?,
        destination: address(16)?,
        protocol: *packet.get(9)?,
        payload: packet.get(header..)?.to_vec(),
    })
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| {
            u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]))
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
