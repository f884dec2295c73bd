//! What may pass, as a parser in plain Rust, and frames to test.
//! Out of scope: the comparison.

use std::net::Ipv4Addr;

/// The VM's MAC.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
/// The VM's address.
pub const IP: Ipv4Addr = Ipv4Addr::new(192, 168, 137, 7);
/// Extension headers that hide what follows, except hop-by-hop options.
const EXTENSIONS: [u8; 7] = [43, 44, 51, 60, 135, 139, 140];

/// The VM's link-local address: fe80:: and the modified EUI-64 of its MAC.
pub const LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 7];
/// Its interface identifier.
const IDENTIFIER: [u8; 8] = [0, 0, 0, 0xff, 0xfe, 0, 0, 7];

/// The rules again, as a parser that uses slices. `None`: the frame is too short.
pub fn passable(frame: &[u8]) -> Option<bool> {
    let (ethernet, payload) = frame.split_at_checked(14)?;
    let to_bridges = ethernet[..5] == [1, 0x80, 0xc2, 0, 0] && ethernet[5] < 16;
    if ethernet[6..12] != MAC || to_bridges {
        return Some(false);
    }
    Some(match u16::from_be_bytes([ethernet[12], ethernet[13]]) {
        0x0800 => return ipv4(payload),
        0x0806 => {
            let arp = payload.get(..28)?;
            let sort = [[0, 1, 8, 0, 6, 4, 0, 1], [0, 1, 8, 0, 6, 4, 0, 2]];
            let ip = arp[14..18] == IP.octets() || arp[14..18] == [0; 4];
            sort.iter().any(|sort| arp[..8] == *sort) && arp[8..14] == MAC && ip
        }
        0x86dd => return ipv6(payload),
        _ => false,
    })
}

fn ipv4(payload: &[u8]) -> Option<bool> {
    let header = payload.get(..20)?;
    let (version, words) = (header[0] >> 4, usize::from(header[0] & 15));
    let fragment = u16::from_be_bytes([header[6], header[7]]) % 0x2000;
    if !(version == 4 && words >= 5 && header[12..16] == IP.octets()) {
        return Some(false);
    }
    let upper = |length: usize| payload.get(words * 4..)?.get(..length);
    Some(match (header[9], fragment) {
        (17, 0) => {
            let udp = upper(8)?;
            udp[..2] != 67u16.to_be_bytes() && udp[2..4] != 68u16.to_be_bytes()
        }
        (1, 0) => !matches!(upper(4)?[0], 5 | 9),
        (2, 0) => matches!(upper(8)?[0], 0x12 | 0x16 | 0x17 | 0x22),
        (2 | 103, _) => false,
        _ => true,
    })
}

fn ipv6(payload: &[u8]) -> Option<bool> {
    let (header, rest) = payload.split_at_checked(40)?;
    let source = &header[8..24];
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let link_local = source[0] == 0xfe && source[1] & 0xc0 == 0x80;
    let unspecified = source == [0; 16];
    if header[0] >> 4 != 6 || source[0] == 0xff || (link_local && source != LINK_LOCAL) {
        return Some(false);
    }
    // What follows a message of this length: nothing, or this option.
    let option = |own: usize, option: &[u8]| match length.checked_sub(own) {
        Some(0) => Some(true),
        Some(8) => Some(rest.get(own..own + 8)?.starts_with(option)),
        _ => Some(false),
    };
    let of_mac = |kind: u8| [&[kind, 1][..], &MAC].concat();
    Some(match (header[6], unspecified) {
        (0, _) if unspecified || link_local => {
            let whole = rest.get(..12)?;
            whole[..6] == [58, 0, 5, 2, 0, 0] && matches!(whole[8], 131 | 132 | 143)
        }
        (0, _) => false,
        (58, true) => match rest.get(..8)?[0] {
            133 => length == 8,
            135 => rest.get(..24)?[16..] == IDENTIFIER && option(24, &[14, 1])?,
            _ => false,
        },
        (_, true) => false,
        (58, false) => match rest.get(..4)?[0] {
            1..=4 | 128 | 129 => true,
            133 => {
                rest.get(..8)?;
                source[8..] == IDENTIFIER && option(8, &of_mac(1))?
            }
            135 => {
                rest.get(..24)?;
                source[8..] == IDENTIFIER && option(24, &of_mac(1))?
            }
            136 => {
                let about = &rest.get(..24)?[16..];
                let host = rest[4] & 0x80 == 0;
                let own = source[8..] == IDENTIFIER && about == IDENTIFIER;
                own && host && option(24, &of_mac(2))?
            }
            _ => false,
        },
        (17, false) => {
            let udp = rest.get(..8)?;
            udp[..2] != 547u16.to_be_bytes() && udp[2..4] != 546u16.to_be_bytes()
        }
        (43 | 44 | 51 | 60 | 135 | 139 | 140, false) => false,
        _ => true,
    })
}

pub fn ethernet_frame(kind: u16, payload: &[u8]) -> Vec<u8> {
    let to = [0xff; 6];
    [&to[..], &MAC, &kind.to_be_bytes(), payload].concat()
}

pub fn ipv4_frame(protocol: u8, fragment: u16, options: usize, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45 + (options / 4) as u8, 0, 0, 60, 0, 1];
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(IP.octets());
    packet.extend([255; 4]);
    packet.extend(vec![1; options]);
    packet.extend(payload);
    ethernet_frame(0x0800, &packet)
}

pub fn udp_from(port: u16) -> Vec<u8> {
    let [a, b] = port.to_be_bytes();
    vec![a, b, 0, 69, 0, 8, 0, 0]
}

pub fn arp_frame(operation: u8, mac: [u8; 6], ip: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, operation];
    body.extend(mac);
    body.extend(ip.octets());
    body.extend([0; 10]);
    ethernet_frame(0x0806, &body)
}

/// A frame from the VM's link-local address.
pub fn ipv6_frame(next: u8, payload: &[u8]) -> Vec<u8> {
    ipv6_from(LINK_LOCAL, next, payload)
}

pub fn ipv6_from(source: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, 255];
    packet.extend(source);
    packet.extend([0xfe; 16]);
    packet.extend(payload);
    ethernet_frame(0x86dd, &packet)
}

/// A neighbour discovery message for that target.
pub fn discovery(kind: u8, target: [u8; 16], option: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target);
    message.extend(option);
    message
}

/// An option with a link-layer address.
pub fn mac_option(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

/// A valid or almost valid frame of each kind, to be mutated.
pub fn seeds() -> Vec<Vec<u8>> {
    let report = |kind| vec![58, 0, 5, 2, 0, 0, 1, 0, kind, 0, 0, 0];
    let mut seeds = vec![
        ipv4_frame(6, 0, 0, &[9; 30]),
        ipv4_frame(17, 0, 0, &udp_from(1000)),
        ipv4_frame(17, 0, 0, &udp_from(67)),
        ipv4_frame(17, 0, 40, &udp_from(67)),
        ipv4_frame(17, 0x2000, 8, &udp_from(67)),
        ipv4_frame(17, 0x2001, 0, &udp_from(67)),
        arp_frame(1, MAC, IP),
        arp_frame(2, MAC, IP),
        arp_frame(1, MAC, Ipv4Addr::UNSPECIFIED),
        ipv4_frame(1, 0, 0, &[8, 0, 0, 0]),
        ipv4_frame(1, 0, 4, &[5, 1, 0, 0]),
        ipv4_frame(2, 0, 4, &[0x16, 0, 0, 0, 0, 0, 0, 0]),
        ipv4_frame(2, 0, 4, &[0x11, 0, 0, 0, 0, 0, 0, 0]),
        ipv6_frame(58, &discovery(135, [0xfd; 16], &mac_option(1, MAC))),
        ipv6_frame(58, &discovery(135, [0xfd; 16], &[])),
        ipv6_frame(58, &discovery(136, LINK_LOCAL, &mac_option(2, MAC))),
        ipv6_frame(58, &discovery(136, LINK_LOCAL, &[])),
        ipv6_from([0; 16], 58, &discovery(135, LINK_LOCAL, &[])),
        ipv6_from(
            [0; 16],
            58,
            &discovery(135, LINK_LOCAL, &[14, 1, 1, 2, 3, 4, 5, 6]),
        ),
        ipv6_frame(
            58,
            &[&[133, 0, 0, 0, 0, 0, 0, 0][..], &mac_option(1, MAC)].concat(),
        ),
        ipv6_from([0; 16], 58, &[133, 0, 0, 0, 0, 0, 0, 0]),
        ipv6_from([0; 16], 0, &report(143)),
        ipv6_frame(58, &[128, 0, 0, 0, 0, 0, 0, 0]),
        ipv6_from([0xfd; 16], 58, &[129, 0, 0, 0, 0, 0, 0, 0]),
        ipv6_from([0xfd; 16], 17, &udp_from(1000)),
        ipv6_frame(58, &[134, 0, 0, 0, 0, 0, 0, 0]),
        ipv6_frame(58, &[137, 0, 0, 0, 0, 0, 0, 0]),
        ipv6_frame(17, &udp_from(546)),
        ipv6_frame(17, &udp_from(547)),
        ipv6_frame(6, &[9; 20]),
        ipv6_frame(59, &[]),
        ethernet_frame(0x88cc, &[2; 40]),
    ];
    seeds.extend([131, 132, 134, 143].map(|kind| ipv6_frame(0, &report(kind))));
    seeds.extend(EXTENSIONS.map(|next| ipv6_frame(next, &report(134))));
    seeds
}
