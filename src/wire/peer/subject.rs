//! The node that a certificate is issued to: its subject is `/O=slice/OU=<node>` and nothing else.
//! Out of scope: whether the certificate is valid ([`super::tls`]).
//!
//! # Why no common name
//! The gateway of etcd, which nodes use with the same certificate, refuses a client certificate with a common name. A certificate with one
//! is that of a person or of another program.

use tokio_rustls::rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use crate::api::meta::Name;

/// The organization of all nodes.
const ORGANIZATION: &str = "slice";

/// Attribute types (X.520): organizationName and organizationalUnitName.
const O: &[u8] = &[0x55, 0x04, 0x0a];
const OU: &[u8] = &[0x55, 0x04, 0x0b];

/// Tags of DER.
const SET: u8 = 0x31;
const SEQUENCE: u8 = 0x30;
const OID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;

/// The maximum number of attributes that are read.
const MAX_ATTRIBUTES: usize = 16;

/// The certificate is not that of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its subject is not that of a node: expected /O=slice/OU=NODE without a common name")]
pub struct NoNode;

/// The node that a certificate is issued to.
///
/// # Errors
/// The subject has another organization, no or several units, an invalid name, or any other attribute, such as a common name.
pub fn node_of(certificate: &CertificateDer<'_>) -> Result<Name, NoNode> {
    let certificate = EndEntityCert::try_from(certificate).map_err(|_| NoNode)?;
    node_of_subject(certificate.subject()).ok_or(NoNode)
}

fn node_of_subject(mut rest: &[u8]) -> Option<Name> {
    let (mut organization, mut unit) = (None, None);
    for _ in 0..MAX_ATTRIBUTES {
        if rest.is_empty() {
            break;
        }
        let (set, after) = value_of(SET, rest)?;
        rest = after;
        let (attribute, others) = value_of(SEQUENCE, set)?;
        if !others.is_empty() {
            return None;
        }
        let (kind, value) = value_of(OID, attribute)?;
        let text = text(value)?;
        let place = match kind {
            O => &mut organization,
            OU => &mut unit,
            _ => return None,
        };
        if place.replace(text).is_some() {
            return None;
        }
    }
    if !rest.is_empty() || organization != Some(ORGANIZATION) {
        return None;
    }
    Name::new(unit?).ok()
}

fn text(der: &[u8]) -> Option<&str> {
    let tag = *der.first()?;
    if ![UTF8_STRING, PRINTABLE_STRING].contains(&tag) {
        return None;
    }
    match value_of(tag, der)? {
        (value, []) => std::str::from_utf8(value).ok(),
        _ => None,
    }
}

/// The content of the value with this tag at the begin, and what follows it.
fn value_of(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => {
            let (&length, rest) = rest.split_first()?;
            (usize::from(length), rest)
        }
        0x82 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        _ => return None,
    };
    (found == tag).then(|| rest.split_at_checked(length))?
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};

    use super::*;

    fn found(subject: Vec<(DnType, DnValue)>) -> Option<String> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in subject {
            params.distinguished_name.push(kind, value);
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        node_of(certificate.der()).ok().map(|name| name.to_string())
    }

    fn utf8(text: &str) -> DnValue {
        DnValue::Utf8String(text.to_owned())
    }

    #[test]
    fn only_a_subject_of_organization_and_unit_is_a_node() {
        let (o, ou) = (DnType::OrganizationName, DnType::OrganizationalUnitName);
        let printable = DnValue::PrintableString("node-a".try_into().unwrap());
        let long = "a".repeat(300);
        for (subject, expected) in [
            (
                vec![(o.clone(), utf8("slice")), (ou.clone(), utf8("node-a"))],
                Some("node-a"),
            ),
            (
                vec![(ou.clone(), utf8("node-a")), (o.clone(), utf8("slice"))],
                Some("node-a"),
            ),
            (
                vec![(o.clone(), utf8("slice")), (ou.clone(), printable)],
                Some("node-a"),
            ),
            (vec![], None),
            (vec![(o.clone(), utf8("slice"))], None),
            (vec![(ou.clone(), utf8("node-a"))], None),
            (
                vec![(o.clone(), utf8("Slice")), (ou.clone(), utf8("node-a"))],
                None,
            ),
            (
                vec![(o.clone(), utf8("slice")), (ou.clone(), utf8("Node A"))],
                None,
            ),
            (
                vec![(o.clone(), utf8("slice")), (ou.clone(), utf8(&long))],
                None,
            ),
            (
                vec![
                    (o.clone(), utf8("slice")),
                    (ou.clone(), utf8("node-a")),
                    (DnType::CommonName, utf8("alice")),
                ],
                None,
            ),
            (vec![(DnType::CommonName, utf8("node-a"))], None),
            (
                vec![
                    (o, utf8("slice")),
                    (ou, utf8("node-a")),
                    (DnType::LocalityName, utf8("x")),
                ],
                None,
            ),
        ] {
            let shown = format!("{subject:?}");
            assert_eq!(found(subject).as_deref(), expected, "{shown}");
        }
    }

    #[test]
    fn a_subject_that_is_cut_off_or_has_two_units_is_none() {
        let attribute = |oid: u8, value: &[u8]| {
            let mut inner = vec![OID, 3, 0x55, 0x04, oid, UTF8_STRING, value.len() as u8];
            inner.extend(value);
            let mut sequence = vec![SEQUENCE, inner.len() as u8];
            sequence.extend(inner);
            let mut set = vec![SET, sequence.len() as u8];
            set.extend(sequence);
            set
        };
        let (o, ou) = (attribute(0x0a, b"slice"), attribute(0x0b, b"a"));
        let valid = [o.clone(), ou.clone()].concat();
        assert!(node_of_subject(&valid).is_some());
        for end in 0..valid.len() {
            assert_eq!(node_of_subject(&valid[..end]), None, "{end}");
        }
        let twice = [o.clone(), ou.clone(), ou].concat();
        assert_eq!(node_of_subject(&twice), None);
        let mut huge = valid.clone();
        huge[1] = 0x84;
        assert_eq!(node_of_subject(&huge), None);
        let many = o.repeat(100);
        assert_eq!(node_of_subject(&many), None);
    }
}
