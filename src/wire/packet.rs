//! `DST[:PORT[/PROTO]]`: parses and formats the packet of an `explain` request.
//! Out of scope: evaluating it.

use crate::api::policy::{Entry, Packet, Protocol};

/// Parses `DST`, `DST:PORT` (TCP) or `DST:PORT/PROTO`. `DST` alone is a packet without ports, such as a ping.
pub fn parse(text: &str) -> Result<Packet, String> {
    let error =
        |why: &str| format!("invalid destination \"{text}\": {why}; expected IP[:PORT[/PROTO]]");
    let entry: Entry = text.parse().map_err(|_| {
        error("it consists of an IPv4 address, a port from 1 to 65535, and tcp or udp")
    })?;
    if entry.network.prefix() != 32 {
        return Err(error("it is a network, not one address"));
    }
    let transport = match (entry.ports, entry.protocol) {
        (None, None) => None,
        (None, Some(_)) => return Err(error("a protocol requires a port")),
        (Some(ports), protocol) if ports.first == ports.last => {
            Some((protocol.unwrap_or(Protocol::Tcp), Some(ports.first)))
        }
        (Some(_), _) => return Err(error("it has a range of ports, not one port")),
    };
    Ok(Packet {
        destination: entry.network.ip(),
        transport,
    })
}

/// Formats a packet as [`parse`] reads it, always with the protocol.
pub fn text(packet: &Packet) -> String {
    match packet.transport {
        None => packet.destination.to_string(),
        Some((protocol, Some(port))) => format!("{}:{port}/{protocol}", packet.destination),
        Some((protocol, None)) => format!("{}/{protocol}", packet.destination),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_parsed_and_formatted_with_its_protocol() {
        for (input, canonical) in [
            ("1.1.1.1", "1.1.1.1"),
            ("1.1.1.1:443", "1.1.1.1:443/tcp"),
            ("1.1.1.1:53/udp", "1.1.1.1:53/udp"),
        ] {
            assert_eq!(text(&parse(input).unwrap()), canonical);
        }
    }

    #[test]
    fn anything_but_a_single_packet_is_refused_with_the_reason() {
        for (input, reason) in [
            ("10.0.0.0/8", "a network"),
            ("1.1.1.1/udp", "requires a port"),
            ("1.1.1.1:1-9", "a range of ports"),
            ("example.org", "an IPv4 address"),
            ("1.1.1.1:0", "a port from 1"),
            ("", "an IPv4 address"),
        ] {
            let error = parse(input).unwrap_err();
            assert!(error.contains(reason), "{input}: {error}");
        }
    }
}
