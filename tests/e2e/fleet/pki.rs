//! Certificates of a cluster and of its clients.
//! Out of scope: who trusts them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams,
    SerialNumber,
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

    /// The certificate of a node, for etcd, for other nodes and for clients of its API at these addresses; and its serial number.
    pub fn node(&self, node: &str, addresses: &[&str]) -> (Identity, SerialNumber) {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        let serial = SerialNumber::from(SERIAL.fetch_add(1, Ordering::Relaxed));
        let subject = [
            (DnType::OrganizationName, "slice"),
            (DnType::OrganizationalUnitName, node),
        ];
        let addresses: Vec<String> = addresses.iter().map(|it| (*it).to_owned()).collect();
        let file = format!("{node}-node");
        let identity = self.sign_with(
            &file,
            &addresses,
            &subject,
            Validity::Now,
            Some(serial.clone()),
        );
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&identity.key, mode).expect("its mode");
        (identity, serial)
    }

    /// A list of revoked certificates in this file, which is replaced.
    pub fn revoke(&self, file: &Path, serials: &[SerialNumber]) {
        let revoked = |serial: &SerialNumber| RevokedCertParams {
            serial_number: serial.clone(),
            revocation_time: rcgen::date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update: rcgen::date_time_ymd(2040, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).expect("a list");
        let new = file.with_extension("new");
        fs::write(&new, list.pem().expect("PEM")).expect("written");
        fs::rename(new, file).expect("renamed");
    }

    fn sign(
        &self,
        file: &str,
        addresses: &[String],
        subject: &[(DnType, &str)],
        validity: Validity,
    ) -> Identity {
        self.sign_with(file, addresses, subject, validity, None)
    }

    fn sign_with(
        &self,
        file: &str,
        addresses: &[String],
        subject: &[(DnType, &str)],
        validity: Validity,
        serial: Option<SerialNumber>,
    ) -> Identity {
        let mut params = CertificateParams::new(addresses.to_vec()).expect("parameters");
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = serial;
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
