//! As much of HTTP as metadata speaks: the TTL of each answer's packets is the socket's, which servers out of a library
//! do not hand out.

use std::io::{BufRead, Read};

/// What is asked.
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    /// Names in small letters.
    pub(super) headers: Vec<(String, String)>,
}

impl Request {
    /// The next request of a connection; `None` at its end.
    pub(super) fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Self>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
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
        let request = Request { method, path, headers };
        let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
        Ok(Some(request))
    }

    pub(super) fn header(&self, wanted: &str) -> Option<&str> {
        self.headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
    }
}

/// What is answered.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
    /// Seconds that a token lives, if the body is one.
    pub(super) ttl: Option<u64>,
}

impl Answer {
    pub(super) fn status(status: u16) -> Self {
        Answer { status, body: String::new(), ttl: None }
    }

    pub(super) fn found(body: String) -> Self {
        Answer { status: 200, body, ttl: None }
    }

    pub(super) fn render(&self) -> String {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "Not Found",
            _ => "Method Not Allowed",
        };
        let ttl = self.ttl.map(|ttl| format!("X-Aws-Ec2-Metadata-Token-Ttl-Seconds: {ttl}\r\n")).unwrap_or_default();
        let Answer { status, body, .. } = self;
        format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\n{ttl}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }
}
