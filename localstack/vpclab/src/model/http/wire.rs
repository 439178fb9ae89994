//! HTTP/1.1 as far as SDKs speak it: bodies of known length, connections that stay.

use std::io::{BufRead, Error, ErrorKind, Read, Result};

/// Nothing that EC2 takes is longer, in bytes.
const LONGEST_BODY: u64 = 1 << 20;

/// One request.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub method: String,
    /// Without its query.
    pub path: String,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Asked {
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
        let mut asked = Asked { method, path, headers, body: Vec::new() };
        let length = asked.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        if length > LONGEST_BODY || asked.header("transfer-encoding").is_some() {
            return Err(Error::new(ErrorKind::InvalidData, "a body of unknown or great length"));
        }
        let read = reader.take(length).read_to_end(&mut asked.body)?;
        if u64::try_from(read).unwrap_or(0) < length {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(Some(asked))
    }

    pub fn header(&self, wanted: &str) -> Option<&str> {
        self.headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
    }

    /// The access key of the signature.
    pub fn caller(&self) -> &str {
        let credential = self.header("authorization").and_then(|text| text.split("Credential=").nth(1));
        credential.and_then(|text| text.split('/').next()).unwrap_or("operator")
    }
}

/// One answer.
pub(super) struct Answer {
    pub status: u16,
    /// Its content type.
    pub kind: &'static str,
    /// EC2's id of the request: SDKs read it from the header x-amzn-RequestId, not from the body.
    pub request_id: Option<String>,
    pub body: String,
}

impl Answer {
    pub fn json(status: u16, body: &str) -> Self {
        Answer { status, kind: "application/json", request_id: None, body: body.to_owned() }
    }

    /// A body that cannot be used.
    pub fn bad(why: &str) -> Self {
        Answer::json(400, &serde_json::json!({ "error": why }).to_string())
    }

    pub fn render(&self) -> String {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            403 => "Forbidden",
            404 => "Not Found",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        let Answer { status, kind, request_id, body } = self;
        let id = request_id.as_ref().map(|id| format!("x-amzn-RequestId: {id}\r\n")).unwrap_or_default();
        let length = body.len();
        format!("HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\n{id}Content-Length: {length}\r\n\r\n{body}")
    }
}
