//! The model over HTTP, as an SDK meets it. Needs no root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{net::TcpListener, thread};

use vpclab::model::{Model, Options, http::Server};

struct Client {
    url: String,
    agent: ureq::Agent,
    server: Server,
}

impl Client {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Server::new(Model::new(Options::default()), false);
        let serving = server.clone();
        thread::spawn(move || serving.serve(&listener));
        let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().into();
        Client { url, agent, server }
    }

    /// Status and body; `None` if the connection closes.
    fn ask(&self, form: &[(&str, &str)]) -> Option<(u16, String)> {
        let form = [("Version", "2016-11-15")].into_iter().chain(form.iter().copied());
        let mut answer = self.agent.post(&self.url).send_form(form).ok()?;
        Some((answer.status().as_u16(), answer.body_mut().read_to_string().unwrap()))
    }

    fn post(&self, path: &str, body: &str) -> u16 {
        self.agent.post(format!("{}{path}", self.url)).send(body).unwrap().status().as_u16()
    }

    /// The text of the first element of this name.
    fn field(&self, form: &[(&str, &str)], name: &str) -> String {
        let (status, body) = self.ask(form).unwrap();
        assert_eq!(status, 200, "{body}");
        let document = roxmltree::Document::parse(&body).unwrap();
        let found = document.descendants().find(|node| node.tag_name().name() == name).and_then(|node| node.text());
        found.unwrap_or_else(|| panic!("no {name} in {body}")).to_owned()
    }

    fn subnet(&self) -> String {
        let vpc = self.field(&[("Action", "CreateVpc"), ("CidrBlock", "10.0.0.0/16")], "vpcId");
        let cidr = ("CidrBlock", "10.0.1.0/28");
        self.field(&[("Action", "CreateSubnet"), ("VpcId", &vpc), cidr], "subnetId")
    }
}

#[test]
fn refusals_have_ec2s_form() {
    let client = Client::new();
    let subnet = client.subnet();
    for (form, status, code) in [
        (vec![("Action", "CreateNetworkInterface")], 400, "MissingParameter"),
        (vec![("Action", "CreateNetworkInterface"), ("SubnetId", "subnet-0")], 400, "InvalidSubnetID.NotFound"),
        (vec![("Action", "CreateNetworkInterface"), ("SubnetId", &subnet), ("Colour", "x")], 400, "UnknownParameter"),
        (vec![("Action", "Colour")], 400, "InvalidAction"),
        (vec![("Action", "DescribeNetworkInterfaces"), ("MaxResults", "x")], 400, "InvalidParameterValue"),
    ] {
        let (found, body) = client.ask(&form).unwrap();
        assert!(body.contains(&format!("<Response><Errors><Error><Code>{code}</Code>")), "{body}");
        assert!(found == status && body.contains("<RequestID>"), "{found} {body}");
    }
}

#[test]
fn a_request_is_named_in_the_header_as_in_the_body() {
    let client = Client::new();
    for action in ["DescribeSubnets", "CreateNetworkInterface"] {
        let mut answer = client.agent.post(&client.url).send_form([("Action", action)]).unwrap();
        let id = answer.headers().get("x-amzn-requestid").unwrap().to_str().unwrap().to_owned();
        assert!(id.len() == 36 && answer.body_mut().read_to_string().unwrap().contains(&id), "{action} {id}");
    }
}

#[test]
fn text_arrives_as_it_left() {
    let client = Client::new();
    let subnet = client.subnet();
    let odd = "<a> & \"b\" 'c' é 日本";
    let create = [("Action", "CreateNetworkInterface"), ("SubnetId", &subnet), ("Description", odd)];
    assert_eq!(client.field(&create, "description"), odd);
}

#[test]
fn faults_come_and_go_by_a_path_of_their_own() {
    let client = Client::new();
    let subnet = client.subnet();
    let create = [("Action", "CreateNetworkInterface"), ("SubnetId", subnet.as_str())];
    let enis = || {
        let (model, now) = client.server.model();
        model.enis(now).len()
    };
    assert_eq!(client.post("/faults", r#"{"lose_answer": {"CreateNetworkInterface": 1.0}}"#), 200);
    assert_eq!((client.ask(&create), enis()), (None, 1));
    assert_eq!(client.post("/faults", r#"{"down": true}"#), 200);
    assert_eq!((client.ask(&create), enis()), (None, 1));
    // Silence lasts until the caller gives up.
    assert_eq!(client.post("/faults", r#"{"silent": true}"#), 200);
    let timeout = Some(std::time::Duration::from_millis(300));
    let request = client.agent.post(&client.url).config().timeout_global(timeout).build();
    let answer = request.send_form([("Action", "DescribeSubnets")]);
    assert!(matches!(answer, Err(ureq::Error::Timeout(_))), "{answer:?}");
    assert_eq!((client.post("/faults", "{}"), client.ask(&[("Action", "DescribeSubnets")]).unwrap().0), (200, 200));
    assert_eq!(client.post("/faults", r#"{"fail": {"CreateNetworkInterface": [1.0, "Unavailable"]}}"#), 200);
    assert_eq!(client.ask(&create).unwrap().0, 503);
    assert_eq!(client.post("/faults", r#"{"no such": 1}"#), 400);
    assert_eq!(client.post("/faults", "{}"), 200);
    let taken: Vec<String> = (4..15).map(|host| format!("10.0.1.{host}")).collect();
    let taken = format!("{{\"subnet\": {subnet:?}, \"addresses\": {taken:?}}}");
    assert_eq!(client.post("/occupy", &taken), 200);
    let (_, body) = client.ask(&create).unwrap();
    assert!(body.contains("InsufficientFreeAddressesInSubnet"), "{body}");
    assert_eq!(client.post("/vacate", &taken), 200);
    assert_eq!(client.ask(&create).unwrap().0, 200);
    assert_eq!(client.post("/unknown", "{}"), 404);
}
