//! Certificates of a cluster and of its clients.
//! Out of scope: who trusts them.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};
use slicectl::fleet::kv::Identity;

/// An authority, and the directory with what it has signed.
pub struct Pki {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// The time in which a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    Now,
    Expired,
}

impl Pki {
    /// A new authority.
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).expect("a directory");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).expect("a certificate");
        fs::write(dir.join("ca.crt"), ca.pem()).expect("written");
        Self {
            dir: dir.to_owned(),
            issuer: Issuer::new(params, key),
        }
    }

    /// The file of the authority.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// A certificate of a member, for clients and other members. The gateway of a member is its client, so it has no common name either.
    pub fn server(&self, addresses: &[String]) -> Identity {
        self.sign("server", addresses, &[], Validity::Now)
    }

    /// A certificate of a client with this organizational unit, and without a common name.
    pub fn client(&self, unit: &str, validity: Validity) -> Identity {
        let subject = [
            (DnType::OrganizationName, "slice"),
            (DnType::OrganizationalUnitName, unit),
        ];
        self.sign(&format!("{unit}-{validity:?}"), &[], &subject, validity)
    }

    /// A certificate of a client that only has a common name.
    pub fn client_with_common_name(&self, name: &str) -> Identity {
        let subject = [(DnType::CommonName, name)];
        self.sign(&format!("{name}-named"), &[], &subject, Validity::Now)
    }

    fn sign(
        &self,
        file: &str,
        addresses: &[String],
        subject: &[(DnType, &str)],
        validity: Validity,
    ) -> Identity {
        let mut params = CertificateParams::new(addresses.to_vec()).expect("parameters");
        params.distinguished_name = DistinguishedName::new();
        for (kind, name) in subject {
            params.distinguished_name.push(kind.clone(), *name);
        }
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        if validity == Validity::Expired {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        let path = |end: &str| self.dir.join(format!("{file}.{end}"));
        let identity = Identity {
            cert: path("crt"),
            key: path("key"),
        };
        fs::write(&identity.cert, cert.pem()).expect("written");
        fs::write(&identity.key, key.serialize_pem()).expect("written");
        identity
    }
}
