//! The model behind EC2's Query protocol, for SDKs and command lines that do not know that it is one.
//!
//! Virtual time is the time since the start. A state that takes time, such as "attaching", takes it for real;
//! the latency of calls is only spent if asked for. A lost answer is a connection that closes, or, where EC2 is
//! silent, one that stays open.
//! Signatures are not checked; the access key's name stands for the caller. Beside the protocol there are
//! paths for whoever runs the tests, with JSON bodies:
//!
//! | | |
//! |---|---|
//! | `GET /health` | 200 |
//! | `GET /faults`, `POST /faults` | [`Faults`]; a post replaces all |
//! | `POST /occupy`, `POST /vacate` | `{"subnet": …, "addresses": […]}`: [`Model::occupy`], [`Model::vacate`] |
//! | `GET /counts` | calls by action: calls, throttled, failed, lost |

mod actions;
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

use super::{Faults, Model};
use crate::{
    http::{Answer, Asked},
    wait,
};
use actions::Heard;
pub use actions::TRUTH_HEADER;

/// A model that answers on a socket. Clones are the same one.
#[derive(Clone)]
pub struct Face {
    model: Arc<Mutex<Model>>,
    start: Instant,
    latency: bool,
}

/// The body of occupy and vacate.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Taken {
    subnet: String,
    addresses: Vec<Ipv4Addr>,
}

impl Face {
    /// Virtual time starts now. `latency`: whether calls take their time.
    pub fn new(model: Model, latency: bool) -> Self {
        Face { model: Arc::new(Mutex::new(model)), start: Instant::now(), latency }
    }

    /// The model, between two calls, and the time that it has now in milliseconds.
    pub fn model(&self) -> (MutexGuard<'_, Model>, u64) {
        // A thread that panicked has left a model that is still whole, or the next call shows it.
        let model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        (model, u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Answers until the process ends; a thread for each connection.
    pub fn serve(&self, listener: &TcpListener) {
        for stream in listener.incoming().flatten() {
            let face = self.clone();
            thread::spawn(move || {
                // A broken connection is the client's affair.
                let _ = face.converse(&stream);
            });
        }
    }

    fn converse(&self, stream: &TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some(asked) = Asked::read(&mut reader)? {
            let Some(answer) = self.answer(&asked) else {
                if self.model().0.faults_mut().silent {
                    // Nothing more is heard: the caller hangs up, or the time for a read ends.
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
    fn answer(&self, asked: &Asked) -> Option<Answer> {
        let (mut model, now) = self.model();
        Some(match (asked.method.as_str(), asked.path.as_str()) {
            ("GET", "/health" | "/_localstack/health") => json(200, "{\"services\": {\"ec2\": \"running\"}}"),
            ("GET", "/faults") => json(200, &serde_json::json!(model.faults_mut()).to_string()),
            ("POST", "/faults") => match serde_json::from_slice::<Faults>(&asked.body) {
                Ok(faults) => {
                    *model.faults_mut() = faults;
                    json(200, "{}")
                }
                Err(error) => bad(&error.to_string()),
            },
            ("POST", path @ ("/occupy" | "/vacate")) => match serde_json::from_slice::<Taken>(&asked.body) {
                Ok(Taken { subnet, addresses }) if path == "/occupy" => {
                    model.occupy(&subnet, addresses);
                    json(200, "{}")
                }
                Ok(Taken { subnet, addresses }) => {
                    model.vacate(&subnet, addresses);
                    json(200, "{}")
                }
                Err(error) => bad(&error.to_string()),
            },
            ("GET", "/counts") => {
                let counts: BTreeMap<_, _> = model
                    .counts()
                    .iter()
                    .map(|(action, n)| (action, [n.calls, n.throttled, n.failed, n.lost]))
                    .collect();
                json(200, &serde_json::json!(counts).to_string())
            }
            ("POST", "/") => {
                let heard = actions::hear(&mut model, now, asked);
                drop(model);
                return self.tell(heard);
            }
            _ => Answer::status(404),
        })
    }

    fn tell(&self, heard: Heard) -> Option<Answer> {
        let Heard { takes_ms, request_id, body } = heard;
        if self.latency {
            wait::pause(Duration::from_millis(takes_ms));
        }
        let (status, body) = match body? {
            Ok(body) => (200, body),
            Err(error) => (error.status, xml::error(&error, &request_id)),
        };
        // SDKs read EC2's id of the request from here, not from the body.
        let header = Some(("x-amzn-RequestId", request_id));
        Some(Answer { status, kind: "text/xml;charset=UTF-8", header, body })
    }
}

fn json(status: u16, body: &str) -> Answer {
    Answer { kind: "application/json", body: body.to_owned(), ..Answer::status(status) }
}

/// A body that cannot be used.
fn bad(why: &str) -> Answer {
    json(400, &serde_json::json!({ "error": why }).to_string())
}
