//! The cluster's certificates and keys, as files.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Its holder is asked.
    Server,
    /// Its holder asks; the name is the user's.
    Client,
}

/// One authority, and a folder with what it has signed.
pub struct Pki {
    folder: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    /// A new authority, and the key by which service accounts' tokens are signed.
    pub fn create(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut params = CertificateParams::new(Vec::new()).context("a certificate without names")?;
        params.distinguished_name.push(DnType::CommonName, "kubelab");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().context("cannot make a key")?;
        let key_pem = key.serialize_pem();
        let authority = CertifiedIssuer::self_signed(params, key).context("cannot sign a certificate")?;
        let pki = Pki { folder: folder.to_owned(), authority };
        pki.write("ca.crt", &pki.authority.as_ref().pem())?;
        pki.write("ca.key", &key_pem)?; // the controller manager signs requests of kubelets and users with it
        let accounts = KeyPair::generate().context("cannot make a key")?;
        pki.write("service-accounts.key", &accounts.serialize_pem())?;
        pki.write("service-accounts.pub", &accounts.public_key_pem())?;
        Ok(pki)
    }

    /// A key with a certificate: NAME.crt and NAME.key. `groups`: those of the user; `names`: addresses and host names of a
    /// server.
    pub fn issue(&self, name: &str, usage: Use, user: &str, groups: &[&str], names: &[String]) -> anyhow::Result<()> {
        let mut params = CertificateParams::new(Vec::new()).context("a certificate without names")?;
        params.distinguished_name.push(DnType::CommonName, user);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.clone().try_into().with_context(|| format!("{name} is no host name"))?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![match usage {
            Use::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Use::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params.signed_by(&key, &self.authority).with_context(|| format!("cannot sign {name}"))?;
        self.write(&format!("{name}.crt"), &certificate.pem())?;
        self.write(&format!("{name}.key"), &key.serialize_pem())
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// A file of it.
    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }
}
