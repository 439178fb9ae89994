//! HTTP/1.1 as far as SDKs speak it, for EC2 and for metadata: bodies of known length, connections that stay open.
//!
//! Written here because a server out of a library gives access neither to the socket, whose TTL is part of metadata's
//! answers, nor to a connection that gets no answer.

use std::io::{BufRead, Error, ErrorKind, Read, Result};

/// Nothing that either takes is longer, in bytes.
const LONGEST_BODY: u64 = 1 << 20;

/// One request.
#[derive(Debug, Default)]
pub(crate) struct HttpRequest {
    pub method: String,
    /// Without its query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl HttpRequest {
    /// The next request of a connection; `None` at its end. Errors: it breaks off, or its body is too long.
    pub fn read(reader: &mut impl BufRead) -> Result<Option<Self>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let method = words.next().unwrap_or_default().to_owned();
        let target = words.next().unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default().to_owned();
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':') {
                headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
        let mut request = HttpRequest { method, path, headers, body: Vec::new() };
        let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        if length > LONGEST_BODY || request.header("transfer-encoding").is_some() {
            return Err(Error::new(ErrorKind::InvalidData, "a body of unknown or great length"));
        }
        let read = reader.take(length).read_to_end(&mut request.body)?;
        if u64::try_from(read).unwrap_or(0) < length {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(Some(request))
    }

    pub fn header(&self, wanted: &str) -> Option<&str> {
        self.headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
    }
}

/// One response.
#[derive(Debug, Default)]
pub(crate) struct HttpResponse {
    pub status: u16,
    /// Its content type.
    pub kind: &'static str,
    /// A header of its own: name, value.
    pub header: Option<(&'static str, String)>,
    pub body: String,
}

impl HttpResponse {
    /// Without a body.
    pub fn status(status: u16) -> Self {
        HttpResponse { status, kind: "text/plain", ..HttpResponse::default() }
    }

    pub fn render(&self) -> String {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        let HttpResponse { status, kind, header, body } = self;
        let header = header.as_ref().map(|(name, value)| format!("{name}: {value}\r\n")).unwrap_or_default();
        let length = body.len();
        format!("HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\n{header}Content-Length: {length}\r\n\r\n{body}")
    }
}
