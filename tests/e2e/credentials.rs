//! How the daemon comes to its rights in EC2: a role by IRSA or EKS Pod Identity, with each of the policies of charts/iam.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{fs, path::PathBuf, time::Duration};

use enid_tests::{Backend, Daemon, Lab, LabConfig, Place, Pod, wait_until};
use serde_json::{Value, json};
use vpclab::model::Faults;

const BOUND: Duration = Duration::from_secs(60);
const CLUSTER: &str = "lab-cluster";
const ROLE: &str = "arn:aws:iam::000000000000:role/enid";

fn policy(name: &str) -> Value {
    let path = format!("{}/../charts/iam/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&fs::read_to_string(path).unwrap().replace("CLUSTER_NAME", CLUSTER)).unwrap()
}

/// A node of a cluster, and a role for its daemon.
struct Account {
    lab: Lab,
    token: PathBuf,
}

impl Account {
    fn new(name: &str, policy: &Value) -> Self {
        let name = format!("{name}{}", std::process::id());
        let lab =
            Lab::up(&LabConfig { name: name.clone(), nodes: 1, ec2: Backend::Model, ..LabConfig::default() }).unwrap();
        // As node groups of EKS have it.
        let tag = format!("kubernetes.io/cluster/{CLUSTER}");
        let tagged =
            [("ResourceId.1", lab.node(0).instance_id.as_str()), ("Tag.1.Key", &tag), ("Tag.1.Value", "owned")];
        lab.ec2("CreateTags", &tagged).unwrap();
        let account = Account { lab, token: std::env::temp_dir().join(format!("enid-token-{name}")) };
        account.accept("first", policy, 3_600_000);
        fs::write(&account.token, "first").unwrap();
        account
    }

    /// Only this token is taken for the role from now on.
    fn accept(&self, token: &str, policy: &Value, lifetime_ms: u64) {
        let role = json!({ "arn": ROLE, "policy": policy, "tokens": [token], "lifetime_ms": lifetime_ms });
        self.lab.set_role(&role).unwrap();
    }

    fn place(&self) -> Place<'_> {
        Place::node(&self.lab, 0)
    }

    /// As the webhook of IRSA sets a pod up, or the one of Pod Identity.
    fn settings(&self, by_pod_identity: bool) -> Vec<(&'static str, String)> {
        let token = self.token.to_string_lossy().into_owned();
        let mut settings = match by_pod_identity {
            true => vec![
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials".to_owned()),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token),
            ],
            false => vec![
                ("AWS_ROLE_ARN", ROLE.to_owned()),
                ("AWS_WEB_IDENTITY_TOKEN_FILE", token),
                ("AWS_ENDPOINT_URL_STS", self.lab.state().ec2_endpoint.clone()),
            ],
        };
        // Nothing else to sign with.
        settings.extend([("AWS_ACCESS_KEY_ID", String::new()), ("AWS_SECRET_ACCESS_KEY", String::new())]);
        settings.extend([("CLUSTER_NAME", CLUSTER.to_owned()), ("IP_COOLDOWN_PERIOD", "0".to_owned())]);
        settings
    }

    fn spawn(&self, by_pod_identity: bool, more: &[(&'static str, &str)]) -> Daemon {
        let settings = self.settings(by_pod_identity);
        let all: Vec<(&str, &str)> =
            settings.iter().map(|(name, value)| (*name, value.as_str())).chain(more.iter().copied()).collect();
        Daemon::spawn(self.place(), &all).unwrap()
    }

    fn waits_for(&self, daemon: &Daemon, holds: impl Fn(Place<'_>) -> bool) {
        wait_until(BOUND, || holds(self.place())).unwrap_or_else(|_| panic!("{}", daemon.log()));
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.token);
    }
}

/// Grows to two ENIs, shrinks to one, and is denied nothing.
fn lives(account: &Account, by_pod_identity: bool) {
    let daemon = account.spawn(by_pod_identity, &[("WARM_IP_TARGET", "12")]);
    account.waits_for(&daemon, |place| place.serves() && place.number("enis").is_ok_and(|enis| enis == 2));
    let pod = Pod::new(0, "right");
    pod.add(account.place()).unwrap();
    pod.del(account.place()).unwrap();
    daemon.kill().unwrap();
    let daemon = account.spawn(by_pod_identity, &[("WARM_IP_TARGET", "2")]);
    let shrunk = |place: Place<'_>| place.number("enis").is_ok_and(|enis| enis == 1);
    wait_until(BOUND * 4, || shrunk(account.place())).unwrap_or_else(|_| panic!("{}", daemon.log()));
    assert!(!daemon.log().contains("denied") && !daemon.log().contains("UnauthorizedOperation"), "{}", daemon.log());
}

#[test]
fn the_policy_for_a_cluster_is_enough_by_irsa() {
    lives(&Account::new("irsa", &policy("cluster")), false);
}

#[test]
fn the_full_policy_is_enough_by_pod_identity() {
    lives(&Account::new("podid", &policy("full")), true);
}

/// The kind: credentials end, and where they come from may be away. It is no matter for pods that run, nor for addresses
/// that the node has.
#[test]
fn a_token_is_rotated_and_its_issuer_is_away_at_the_start() {
    let full = policy("full");
    let account = Account::new("rotate", &full);
    // Keys that end soon: the SDK asks for new ones before they do.
    account.accept("first", &full, 20_000);
    let daemon = account.spawn(false, &[("WARM_IP_TARGET", "2")]);
    account.waits_for(&daemon, |place| place.serves());
    account.accept("second", &full, 20_000);
    fs::write(&account.token, "second").unwrap();
    let mut pods: Vec<Pod> = Vec::new();
    let started = std::time::Instant::now();
    // Each pod more is a call of EC2, far beyond the first key's end.
    wait_until(BOUND, || {
        if pods.len() < 7 && started.elapsed() > Duration::from_secs(5) * u32::try_from(pods.len()).unwrap() {
            let pod = Pod::new(0, &format!("rotate-{}", pods.len()));
            pod.add(account.place()).unwrap_or_else(|failure| panic!("{failure:#} {}", daemon.log()));
            pods.push(pod);
        }
        started.elapsed() > Duration::from_secs(35)
    })
    .unwrap();
    assert!(!daemon.log().contains("credentials"), "{}", daemon.log());
    daemon.kill().unwrap();

    // Away from the start on: two addresses are free.
    account.lab.set_ec2(&Faults { credentials_away: true, ..Faults::default() }).unwrap();
    let daemon = account.spawn(false, &[("WARM_IP_TARGET", "2")]);
    account.waits_for(&daemon, |place| place.serves());
    assert_eq!(account.place().leases().unwrap().len(), pods.len());
    for n in 0..2 {
        let pod = Pod::new(0, &format!("free-{n}"));
        pod.add(account.place()).unwrap();
        pods.push(pod);
    }
    let one_more = Pod { config: enid_tests::pod::config("1.0.0", 3), ..Pod::new(0, "one-more") };
    one_more.make_namespace(account.place()).unwrap();
    one_more.refused(account.place(), 11, &["no_credentials", "there are no credentials"]).unwrap();
    assert_eq!(account.place().enid("status").unwrap()["cause"], "no_credentials");
    // It comes back, and the pod gets its address.
    account.lab.set_ec2(&Faults::default()).unwrap();
    wait_until(BOUND, || one_more.call(account.place(), "ADD").is_ok()).unwrap_or_else(|_| panic!("{}", daemon.log()));
    one_more.del(account.place()).unwrap();
    pods.iter().for_each(|pod| pod.del(account.place()).unwrap());
}

/// The kind: a right that is not there is told by its name.
#[test]
fn each_right_that_is_taken_away_is_missed() {
    // What the daemon does to get each: growth, its tags, a second ENI.
    for (sid, missed) in [
        ("CreateWithTheClustersTag", "ec2:CreateNetworkInterface"),
        ("TagWithTheClustersTag", "ec2:CreateTags"),
        ("ChangeWhatHasTheClustersTag", "ec2:AssignPrivateIpAddresses"),
        ("AttachToInstances", "ec2:AttachNetworkInterface"),
    ] {
        let mut less = policy("cluster");
        less["Statement"].as_array_mut().unwrap().retain(|statement| statement["Sid"] != sid);
        let account = Account::new("less", &less);
        let daemon = account.spawn(false, &[("WARM_IP_TARGET", "12")]);
        let told = format!("is not authorized to perform: {missed} on resource");
        wait_until(BOUND, || daemon.log().contains(&told)).unwrap_or_else(|_| panic!("{sid}: {}", daemon.log()));
        wait_until(BOUND, || account.place().metrics().is_ok_and(|page| page.contains("error=\"denied\"")))
            .unwrap_or_else(|_| panic!("{sid}: {}", daemon.log()));
    }
}
