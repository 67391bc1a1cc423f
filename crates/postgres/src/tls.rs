//! Encryption of connections (TLS by rustls), in the modes of libpq's `sslmode`.

use negsync_store::StoreError;
use std::fmt;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Socket;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect};
use tokio_rustls::client;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{self, WebPkiSupportedAlgorithms, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

/// The value of `sslrootcert` that means the authorities that browsers trust.
const SYSTEM: &str = "system";

/// Whether a connection is encrypted, and the requirements on the server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsMode {
    /// No encryption.
    Disable,
    /// Encrypted if the server supports it.
    Prefer,
    /// Encrypted, with any certificate.
    Require,
    /// Encrypted, with a certificate of a trusted authority.
    VerifyAuthority,
    /// Encrypted, with a certificate of a trusted authority for the host's name.
    VerifyFull,
}

impl TlsMode {
    /// Parses the values of `sslmode` and `sslrootcert`. As in libpq, `require` requires a trusted
    /// authority if a file of authorities is given. `system` requires `verify-full`, because anyone
    /// can get a certificate for some name from one of these authorities.
    pub(crate) fn parse(mode: Option<&str>, roots: Option<&str>) -> Result<Self, StoreError> {
        if roots == Some(SYSTEM) {
            return match mode {
                None | Some("verify-full") => Ok(Self::VerifyFull),
                Some(weak) => Err(StoreError::Address(format!(
                    "weak sslmode {weak:?} with sslrootcert=system. Hint: use verify-full, or leave \
                     sslmode out"
                ))),
            };
        }
        Ok(match mode.unwrap_or("prefer") {
            "disable" => Self::Disable,
            "allow" | "prefer" => Self::Prefer,
            "require" if roots.is_some() => Self::VerifyAuthority,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyAuthority,
            "verify-full" => Self::VerifyFull,
            other => {
                return Err(StoreError::Address(format!(
                    "unknown sslmode {other:?}; use disable, prefer, require, verify-ca or verify-full"
                )));
            }
        })
    }

    /// The mode for the client library, which leaves certificates to the connector.
    pub(crate) fn of_client(self) -> SslMode {
        match self {
            Self::Disable => SslMode::Disable,
            Self::Prefer => SslMode::Prefer,
            _ => SslMode::Require,
        }
    }

    fn verifies(self) -> bool {
        matches!(self, Self::VerifyAuthority | Self::VerifyFull)
    }
}

/// The encryption of connections. Clones share the authorities.
#[derive(Clone)]
pub(crate) struct TlsConnector(Arc<ClientConfig>);

impl TlsConnector {
    /// `roots` is the file of `sslrootcert`, or `system`. Without it, modes that need authorities
    /// use `~/.postgresql/root.crt`.
    pub(crate) fn new(mode: TlsMode, roots: Option<&str>) -> Result<Self, StoreError> {
        let provider = Arc::new(ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let authority = if mode.verifies() {
            let roots = Arc::new(read_roots(roots)?);
            let authority =
                WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
                    .build()
                    .map_err(|error| StoreError::Address(format!("sslrootcert: {error}")))?;
            Some(authority)
        } else {
            None
        };
        let verifies_name = mode == TlsMode::VerifyFull;
        let verifier = Arc::new(CertificateVerifier { authority, verifies_name, algorithms });
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| StoreError::Address(format!("TLS: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnector").finish_non_exhaustive()
    }
}

/// The authorities of a PEM file, or those that browsers trust.
fn read_roots(named: Option<&str>) -> Result<RootCertStore, StoreError> {
    if named == Some(SYSTEM) {
        return Ok(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() });
    }
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let file = named.map_or_else(|| home().join(".postgresql/root.crt"), PathBuf::from);
    read_file(&file).map_err(|reason| {
        StoreError::Address(format!(
            "sslrootcert: cannot use {}: {reason}; name a PEM file, or system",
            file.display()
        ))
    })
}

fn read_file(file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| error.to_string())? {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(roots) }
}

/// Verifies a server's certificate. That the server has its private key is checked in every mode.
#[derive(Debug)]
struct CertificateVerifier {
    // `None` if any signer is accepted (`require`, `prefer`).
    authority: Option<Arc<WebPkiServerVerifier>>,
    // Whether the certificate must be for the host's name (`verify-full`) or may be for any name
    // (`verify-ca`).
    verifies_name: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for CertificateVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authority) = &self.authority else { return Ok(ServerCertVerified::assertion()) };
        match authority.verify_server_cert(certificate, chain, name, ocsp, now) {
            // The name is checked last.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.verifies_name => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl MakeTlsConnect<Socket> for TlsConnector {
    type Stream = TlsStream;
    type TlsConnect = NamedConnector;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> Result<NamedConnector, io::Error> {
        let name = ServerName::try_from(host.to_owned()).ok();
        Ok(NamedConnector { config: Arc::clone(&self.0), name })
    }
}

/// A connector for one host.
pub(crate) struct NamedConnector {
    config: Arc<ClientConfig>,
    // `None` for a Unix socket, which does not use TLS.
    name: Option<ServerName<'static>>,
}

impl TlsConnect<Socket> for NamedConnector {
    type Stream = TlsStream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TlsStream>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move {
            let name = self.name.ok_or_else(|| io::Error::other("the host has no name"))?;
            let connector = tokio_rustls::TlsConnector::from(self.config);
            Ok(TlsStream(Box::new(connector.connect(name, socket).await?)))
        })
    }
}

/// An encrypted connection.
pub(crate) struct TlsStream(Box<client::TlsStream<Socket>>);

impl tokio_postgres::tls::TlsStream for TlsStream {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
