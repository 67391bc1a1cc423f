//! The certificates that are accepted from a peer (`wss://`).

use super::SyncError;
use super::dial::DialError;
use crate::config::SyncConfig;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{CertificateError, ClientConfig, Error, RootCertStore};

/// The trusted authorities. Clones share them.
#[derive(Debug, Clone)]
pub struct Trust(Arc<RootCertStore>);

impl Default for Trust {
    /// The authorities that browsers trust.
    fn default() -> Self {
        Self(Arc::new(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }))
    }
}

impl Trust {
    /// The authorities of the configured file, in addition to those that browsers trust.
    pub(super) fn configured(config: &SyncConfig) -> Result<Self, SyncError> {
        let Self(mut roots) = Self::default();
        let file = &config.ca_file;
        if !file.as_os_str().is_empty() {
            let wrong = |reason| SyncError::Authorities { file: file.clone(), reason };
            let added = add(Arc::make_mut(&mut roots), file).map_err(wrong)?;
            if added == 0 {
                return Err(wrong("holds no certificate".to_owned()));
            }
        }
        Ok(Self(roots))
    }

    /// Starts TLS with `host` over a connection; the error has a reason.
    pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        host: &str,
        stream: S,
    ) -> Result<TlsStream<S>, DialError> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| DialError::new("the host name cannot be certified"))?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| DialError::new(format!("TLS: {error}")))?
            .with_root_certificates(Arc::clone(&self.0))
            .with_no_client_auth();
        let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        connected.map_err(|error| {
            let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
            let refused = cause.and_then(|cause| refused(host, cause));
            match refused {
                Some(reason) => DialError::lasting(reason, None),
                None => DialError::new(format!("TLS: {error}")),
            }
        })
    }
}

/// Adds the certificates of a PEM file, and returns their number.
fn add(roots: &mut RootCertStore, file: &Path) -> Result<usize, String> {
    let mut added = 0;
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| error.to_string())? {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
        added += 1;
    }
    Ok(added)
}

/// The reason why TLS failed, with a hint.
fn refused(host: &str, error: &Error) -> Option<String> {
    let error = match error {
        Error::InvalidMessage(_) => {
            return Some("it does not speak TLS; is it a ws:// relay?".into());
        }
        Error::InvalidCertificate(error) => error,
        _ => return None,
    };
    Some(match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the peer's certificate has expired".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("the peer's certificate is not for {host}")
        }
        // A self-signed certificate is reported as one that is not the end of a chain.
        CertificateError::UnknownIssuer | CertificateError::Other(_) => {
            "the peer's certificate is signed by no authority that is believed; \
             sync.ca_file can name one of your own"
                .to_owned()
        }
        other => format!("the peer's certificate is refused: {other}"),
    })
}
