//! HTTP responses.

use crate::server::status;
use http_body_util::Full;
use hyper::body::{Bytes, Frame, SizeHint};
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    HeaderValue,
};
use hyper::{Response, StatusCode};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// The methods of the relay's own path.
pub(super) const METHODS: &str = "GET, HEAD, OPTIONS, POST";

/// The body of a response.
pub(super) enum Body {
    /// A complete body.
    Whole(Full<Bytes>),
    /// A body that continues as long as the client listens.
    Updates(mpsc::Receiver<Bytes>),
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::Whole(Full::from(text))
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::Whole(Full::default())
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(whole) => Pin::new(whole).poll_frame(context),
            Self::Updates(updates) => {
                updates.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Updates(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Updates(_) => SizeHint::new(),
        }
    }
}

/// A response that contains only a reason.
pub(super) fn refuse(status: StatusCode, text: &str) -> Response<Body> {
    answer(status, "text/plain", text.to_owned())
}

/// A response that pages of any origin may read.
pub(super) fn answer(
    status: StatusCode,
    content_type: &'static str,
    body: String,
) -> Response<Body> {
    let mut response = answer_own(status, content_type, body);
    let headers = response.headers_mut();
    // NIP-11: browsers of any origin may read the document.
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    // The star does not include Authorization, which management (NIP-86) needs.
    let names = HeaderValue::from_static("*, authorization");
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names);
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
    response
}

/// A response that pages of other origins cannot read.
pub(super) fn answer_own(
    status_code: StatusCode,
    content_type: &'static str,
    body: String,
) -> Response<Body> {
    status::answer(status_code, content_type, body).map(Body::Whole)
}
