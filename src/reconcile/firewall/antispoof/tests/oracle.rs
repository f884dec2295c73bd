//! What may pass, by a parser in plain Rust, and frames to try. Also compiled into `tests/host_bridge.rs`.
//! Not here: how it is compared.

use std::net::Ipv4Addr;

/// The VM's.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
/// The VM's.
pub const IP: Ipv4Addr = Ipv4Addr::new(192, 168, 137, 7);
/// All that hide what is behind them, but for hop-by-hop options.
const EXTENSIONS: [u8; 7] = [43, 44, 51, 60, 135, 139, 140];

/// The rules once more, by a parser that takes slices. `None` is a frame too short to say.
pub fn passable(frame: &[u8]) -> Option<bool> {
    let (ethernet, payload) = frame.split_at_checked(14)?;
    if ethernet[6..12] != MAC {
        return Some(false);
    }
    Some(match u16::from_be_bytes([ethernet[12], ethernet[13]]) {
        0x0800 => {
            let header = payload.get(..20)?;
            let (version, words) = (header[0] >> 4, usize::from(header[0] & 15));
            let fragment = u16::from_be_bytes([header[6], header[7]]) % 0x2000;
            let own = version == 4 && words >= 5 && header[12..16] == IP.octets();
            match (own, header[9], fragment) {
                (true, 17, 0) => {
                    let udp = payload.get(words * 4..)?.get(..8)?;
                    udp[..2] != 67u16.to_be_bytes()
                }
                (own, ..) => own,
            }
        }
        0x0806 => {
            let arp = payload.get(..28)?;
            let sort = [[0, 1, 8, 0, 6, 4, 0, 1], [0, 1, 8, 0, 6, 4, 0, 2]];
            let ip = arp[14..18] == IP.octets() || arp[14..18] == [0; 4];
            sort.iter().any(|sort| arp[..8] == *sort) && arp[8..14] == MAC && ip
        }
        0x86dd => {
            let (header, rest) = payload.split_at_checked(40)?;
            header[0] >> 4 == 6
                && match header[6] {
                    58 => !matches!(rest.get(..4)?[0], 134 | 137),
                    17 => rest.get(..8)?[..2] != 547u16.to_be_bytes(),
                    0 => {
                        let whole = rest.get(..12)?;
                        whole[..2] == [58, 0] && matches!(whole[8], 131 | 132 | 143)
                    }
                    43 | 44 | 51 | 60 | 135 | 139 | 140 => false,
                    _ => true,
                }
        }
        _ => false,
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
    vec![a, b, 0, 68, 0, 8, 0, 0]
}

pub fn arp_frame(operation: u8, mac: [u8; 6], ip: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, operation];
    body.extend(mac);
    body.extend(ip.octets());
    body.extend([0; 10]);
    ethernet_frame(0x0806, &body)
}

pub fn ipv6_frame(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, 255];
    packet.extend([0xfe; 32]);
    packet.extend(payload);
    ethernet_frame(0x86dd, &packet)
}

/// A good or nearly good frame of each sort, to be mutated.
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
        ipv6_frame(58, &[135, 0, 0, 0, 0, 0, 0, 0]),
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
