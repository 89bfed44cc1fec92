//! TLS by rustls, from a certificate and its key in PEM files.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{Error, Result};

/// What accepts connections under this certificate (with those that vouch for it behind it) and key.
///
/// # Errors
/// [`Error::BadFile`] naming the file that is none of what it should be, or a key that is not the certificate's;
/// [`Error::File`] for one that cannot be read.
pub fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(certificate).map_err(unread(certificate, "certificate"))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(unread(certificate, "certificate"))?;
    if chain.is_empty() {
        return Err(Error::bad_file(certificate, "there is no certificate in it", "give one in PEM, and its chain"));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(unread(key, "private key"))?;
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::internal("setting TLS up"))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|e| Error::bad_file(key, format!("it does not go with the certificate: {e}"), "give the key of it"))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn unread(path: &Path, what: &'static str) -> impl FnOnce(PemError) -> Error {
    let path = path.to_path_buf();
    move |error| match error {
        PemError::Io(source) => Error::File { action: "read", path, source },
        PemError::NoItemsFound => Error::bad_file(path, format!("there is no {what} in it"), "give one in PEM"),
        other => Error::bad_file(path, format!("it is no {what} in PEM: {other}"), "give one in PEM"),
    }
}
