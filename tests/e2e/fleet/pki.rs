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
        let params = CertificateParams::new(addresses.to_vec()).expect("parameters");
        self.sign("server", params, Validity::Now)
    }

    /// A certificate of a client with this organizational unit, and without a common name.
    pub fn client(&self, unit: &str, validity: Validity) -> Identity {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name = DistinguishedName::new();
        let names = [
            (DnType::OrganizationName, "slice"),
            (DnType::OrganizationalUnitName, unit),
        ];
        for (kind, name) in names {
            params.distinguished_name.push(kind, name);
        }
        let name = format!("{unit}-{validity:?}");
        self.sign(&name, params, validity)
    }

    /// The same with a common name.
    pub fn client_with_common_name(&self, name: &str) -> Identity {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        self.sign(&format!("{name}-named"), params, Validity::Now)
    }

    fn sign(&self, name: &str, mut params: CertificateParams, validity: Validity) -> Identity {
        if name == "server" {
            params.distinguished_name = DistinguishedName::new();
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
        let file = |end: &str| self.dir.join(format!("{name}.{end}"));
        let identity = Identity {
            cert: file("crt"),
            key: file("key"),
        };
        fs::write(&identity.cert, cert.pem()).expect("written");
        fs::write(&identity.key, key.serialize_pem()).expect("written");
        identity
    }
}
