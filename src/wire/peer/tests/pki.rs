//! An authority for tests, and what it has signed.
//! Out of scope: the tests.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams,
    SerialNumber, date_time_ymd,
};

use crate::api::meta::Name;
use crate::wire::peer::{PeerTls, Pem};

pub(in crate::wire::peer) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(in crate::wire::peer) struct Ca {
    pub(in crate::wire::peer) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What differs between certificates.
#[derive(Clone, Copy, Default)]
pub(in crate::wire::peer) struct Kind<'k> {
    pub(in crate::wire::peer) is_expired: bool,
    pub(in crate::wire::peer) common_name: Option<&'k str>,
    pub(in crate::wire::peer) hosts: &'k [&'k str],
    pub(in crate::wire::peer) serial: u64,
}

/// A certificate and its key in PEM.
pub(in crate::wire::peer) struct Signed {
    pub(in crate::wire::peer) cert: String,
    pub(in crate::wire::peer) key: String,
}

impl Ca {
    pub(in crate::wire::peer) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate of a node.
    pub(in crate::wire::peer) fn sign(&self, node: &str, kind: Kind<'_>) -> Signed {
        let hosts: Vec<String> = kind.hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        let mut subject = DistinguishedName::new();
        subject.push(DnType::OrganizationName, "slice");
        subject.push(DnType::OrganizationalUnitName, node);
        if let Some(name) = kind.common_name {
            subject.push(DnType::CommonName, name);
        }
        params.distinguished_name = subject;
        params.serial_number = Some(SerialNumber::from(kind.serial + 1));
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        if kind.is_expired {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        Signed {
            cert: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// A list with the certificates with these serial numbers.
    pub(in crate::wire::peer) fn revoke(&self, serials: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(serial + 1),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2040, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// The files of a node.
    pub(in crate::wire::peer) fn pem(&self, own: &Signed, crl: Option<String>) -> Pem {
        Pem {
            ca: self.pem.clone().into_bytes(),
            cert: own.cert.clone().into_bytes(),
            key: own.key.clone().into_bytes(),
            crl: crl.map(String::into_bytes),
        }
    }

    /// A node with a certificate of this authority.
    pub(in crate::wire::peer) fn node(&self, node: &str) -> Arc<PeerTls> {
        self.node_with(node, Kind::default(), None)
    }

    pub(in crate::wire::peer) fn node_with(
        &self,
        node: &str,
        kind: Kind<'_>,
        crl: Option<String>,
    ) -> Arc<PeerTls> {
        let own = self.sign(node, kind);
        Arc::new(PeerTls::new(name(node), self.pem(&own, crl)).unwrap())
    }
}
