//! The model behind EC2's Query protocol, for SDKs and command lines, which cannot tell it from EC2.
//!
//! Virtual time is the time since the start. A state that takes time, such as "attaching", takes it for real;
//! the latency of calls is only spent if request for. A lost answer is a connection that closes, or, where EC2 is
//! silent, one that stays open.
//! STS' AssumeRoleWithWebIdentity and the EKS Pod Identity agent's `GET /v1/credentials` give out keys of roles.
//! Signatures are not checked; the access key's name stands for the caller. Besides the protocol there are
//! paths for whoever runs the tests, with JSON bodies:
//!
//! | | |
//! |---|---|
//! | `GET /health` | 200 |
//! | `GET /faults`, `POST /faults` | [`Faults`]; a post replaces all |
//! | `POST /occupy`, `POST /vacate` | `{"subnet": …, "addresses": […]}`: [`Model::occupy`], [`Model::vacate`] |
//! | `POST /role` | [`Role`]: there is this role from now on |
//! | `GET /counts` | calls by action: calls, throttled, failed, lost |

mod actions;
mod credentials;
mod params;
mod set_up;
mod xml;

use std::{
    collections::BTreeMap,
    io::{BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;

use super::{Faults, Model, Role};
use crate::{
    http::{HttpRequest, HttpResponse},
    wait,
};
use actions::CallResult;
pub use actions::TRUTH_HEADER;

/// A model that answers on a socket. Clones are the same one.
#[derive(Clone)]
pub struct Server {
    model: Arc<Mutex<Model>>,
    start: Instant,
    latency: bool,
}

/// The body of occupy and vacate.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Addresses {
    subnet: String,
    addresses: Vec<Ipv4Addr>,
}

impl Server {
    /// Virtual time starts now. `latency`: whether calls take their time.
    pub fn new(model: Model, latency: bool) -> Self {
        Server { model: Arc::new(Mutex::new(model)), start: Instant::now(), latency }
    }

    /// The model, between two calls, and the time that it has now in milliseconds.
    pub fn model(&self) -> (MutexGuard<'_, Model>, u64) {
        // A thread that panicked has left a model that is still consistent, or the next call shows it.
        let model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        (model, u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Answers until the process ends; a thread for each connection.
    pub fn serve(&self, listener: &TcpListener) {
        for stream in listener.incoming().flatten() {
            let server = self.clone();
            thread::spawn(move || {
                // A broken connection is the client's affair.
                let _ = server.answer_all(&stream);
            });
        }
    }

    fn answer_all(&self, stream: &TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some(request) = HttpRequest::read(&mut reader)? {
            let Some(answer) = self.answer(&request) else {
                if self.model().0.faults_mut().silent {
                    // No answer is sent: the caller closes the connection, or the timeout for a read ends.
                    reader.read_to_end(&mut Vec::new())?;
                }
                return Ok(());
            };
            let mut out = stream;
            out.write_all(answer.render().as_bytes())?;
        }
        Ok(())
    }

    /// `None`: the answer is lost.
    fn answer(&self, request: &HttpRequest) -> Option<HttpResponse> {
        let (mut model, now) = self.model();
        Some(match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/health" | "/_localstack/health") => json(200, "{\"services\": {\"ec2\": \"running\"}}"),
            ("GET", "/faults") => json(200, &serde_json::json!(model.faults_mut()).to_string()),
            ("POST", "/faults") => match serde_json::from_slice::<Faults>(&request.body) {
                Ok(faults) => {
                    *model.faults_mut() = faults;
                    json(200, "{}")
                }
                Err(error) => bad_request(&error.to_string()),
            },
            ("POST", path @ ("/occupy" | "/vacate")) => match serde_json::from_slice::<Addresses>(&request.body) {
                Ok(Addresses { subnet, addresses }) if path == "/occupy" => {
                    model.occupy(&subnet, addresses);
                    json(200, "{}")
                }
                Ok(Addresses { subnet, addresses }) => {
                    model.vacate(&subnet, addresses);
                    json(200, "{}")
                }
                Err(error) => bad_request(&error.to_string()),
            },
            ("POST", "/role") => match serde_json::from_slice::<Role>(&request.body) {
                Ok(role) => {
                    model.set_role(role);
                    json(200, "{}")
                }
                Err(error) => bad_request(&error.to_string()),
            },
            ("GET", "/v1/credentials") if model.faults_mut().credentials_away => return None,
            ("GET", "/v1/credentials") => credentials::of_pod_identity(&mut model, now, request),
            ("GET", "/counts") => {
                let counts: BTreeMap<_, _> = model
                    .counts()
                    .iter()
                    .map(|(action, n)| (action, [n.calls, n.throttled, n.failed, n.lost]))
                    .collect();
                json(200, &serde_json::json!(counts).to_string())
            }
            ("POST", "/") if credentials::is_asked(request) => {
                if model.faults_mut().credentials_away {
                    return None;
                }
                credentials::assume(&mut model, now, request)
            }
            ("POST", "/") => {
                let result = actions::call(&mut model, now, request);
                drop(model);
                return self.respond(result);
            }
            _ => HttpResponse::status(404),
        })
    }

    fn respond(&self, result: CallResult) -> Option<HttpResponse> {
        let CallResult { takes_ms, request_id, body } = result;
        if self.latency {
            wait::pause(Duration::from_millis(takes_ms));
        }
        let (status, body) = match body? {
            Ok(body) => (200, body),
            Err(error) => (error.status, xml::error(&error, &request_id)),
        };
        // SDKs read EC2's id of the request from here, not from the body.
        let header = Some(("x-amzn-RequestId", request_id));
        Some(HttpResponse { status, kind: "text/xml;charset=UTF-8", header, body })
    }
}

fn json(status: u16, body: &str) -> HttpResponse {
    HttpResponse { kind: "application/json", body: body.to_owned(), ..HttpResponse::status(status) }
}

/// A body that cannot be used.
fn bad_request(why: &str) -> HttpResponse {
    json(400, &serde_json::json!({ "error": why }).to_string())
}
