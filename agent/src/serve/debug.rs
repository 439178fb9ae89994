//! `enid.v1.Debug` on debug.sock: the state, read from the core at that moment.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use enid_api::v1::{
    Address, Bucket, Eni, ExplainRequest, Explanation, Fault, GetPoolRequest, GetRecordingRequest, GetStoryRequest,
    Lease, ListAddressesRequest, ListAddressesResponse, ListEnisRequest, ListEnisResponse, ListFaultsRequest,
    ListFaultsResponse, ListLeasesRequest, ListLeasesResponse, ListOperationsRequest, ListOperationsResponse,
    NextValue, Operation, Pool, Recording, Setting, Story, Trouble, WatchOperationsRequest, WatchedOperation,
    admin_server::AdminServer,
    debug_server::{Debug, DebugServer},
};
use enid_datapath::Mac;
use enid_ipamd::{AddressState, AttachmentKey, Class, EniState, Millis, Refusal, View};
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use tokio::sync::{
    Semaphore,
    broadcast::{self, error::RecvError},
    watch,
};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::server::HealthReporter;
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};

use crate::{
    aws::imds::Instance,
    core::handle::Handle,
    core::readiness::Readiness,
    host::sockets::{Listener, Listeners},
    host::{
        kernel::{self, route_table},
        pod_links,
    },
    kubernetes::{Faults, InForce, mismatch},
    record::{Record, name_of},
    serve::{
        admin::AdminService,
        contract::{plan, restricted},
        explain::explain,
        listen::Listen,
    },
    settings::SETTINGS,
    store::Store,
};

/// Health's name for what STATUS says.
pub const CNI_HEALTH: &str = "enid.v1.Cni";

/// The service.
#[derive(Clone)]
pub struct DebugService {
    /// One recording at a time, and none over TCP: it costs the daemon memory, and is as it was taken.
    pub recordings: Option<Arc<Semaphore>>,
    /// To the core's task.
    pub handle: Handle,
    /// What is done.
    pub record: Arc<Record>,
    /// What is on disk.
    pub store: Arc<Store>,
    /// The node's name.
    pub node: String,
    /// The instance.
    pub instance: Instance,
    /// Whether pods can be served.
    pub readiness: watch::Receiver<Readiness>,
    /// Why metrics are not served.
    pub metrics_fault: watch::Receiver<Option<String>>,
    /// What the API server does not serve.
    pub api_server: watch::Receiver<Faults>,
    /// What is given, and by whom.
    pub settings: watch::Receiver<InForce>,
    /// Foreign rules, routes and addresses that take precedence over ours.
    pub conflicts: watch::Receiver<Vec<String>>,
}

impl DebugService {
    async fn view(&self) -> Result<View, Status> {
        self.handle.view().await.ok_or_else(|| Status::unavailable("the daemon is ending"))
    }

    /// Why new pods get no address, if they do not. What has lasted goes before what a single step shows.
    fn obstacle(&self, view: &View) -> Option<Refusal> {
        self.readiness.borrow().obstacle.clone().or_else(|| view.blocked.clone())
    }

    /// Everybody's leases, and pods that live on without one.
    async fn leases(&self) -> Result<(View, Vec<Lease>), Status> {
        let failed = |failure: String| Status::internal(format!("cannot list the links: {failure}"));
        let names = pod_links::pod_ifnames().await.map_err(|failure| failed(format!("{failure:#}")))?;
        let view = self.view().await?;
        let leases = view.leases().map(|(key, lease)| {
            let (host_mac, _) = pod_links::macs(key, Some(lease));
            let host_ifname = names.get(&host_mac).cloned().unwrap_or_default();
            let (pod_namespace, pod_name) = lease.pod.clone().map(|pod| (pod.namespace, pod.name)).unwrap_or_default();
            Lease {
                network: key.network.clone(),
                container: key.container.clone(),
                ifname: key.ifname.clone(),
                pod_namespace,
                pod_name,
                address: lease.address.to_string(),
                age_ms: age(&view, lease),
                second_address: lease.second.map(|second| second.to_string()).unwrap_or_default(),
                eni: lease.eni.to_string(),
                state: if lease.wired { "wired" } else { "reserved" }.to_owned(),
                host_ifname,
            }
        });
        // A pod that lives on without a lease: its address is known, and nothing else.
        let orphaned = |address: &IpAddr| {
            let block = view.block_of(*address);
            let eni = block.map(|block| block.eni().to_string()).unwrap_or_default();
            Lease { address: address.to_string(), eni, state: "orphaned".to_owned(), ..Lease::default() }
        };
        let leases = leases.chain(view.orphans.iter().map(orphaned)).collect();
        Ok((view, leases))
    }
}

#[tonic::async_trait]
impl Debug for DebugService {
    async fn get_pool(&self, _: Request<GetPoolRequest>) -> Result<Response<Pool>, Status> {
        let view = self.view().await?;
        let readiness = self.readiness.borrow().clone();
        let (cause, cause_message) = in_two(self.obstacle(&view));
        let in_words =
            |refusal: Option<Refusal>| refusal.map(|Refusal { cause, message, .. }| format!("{cause}: {message}"));
        let pause =
            view.pacing.pauses.iter().filter(|(_, until, _)| *until > view.now).max_by_key(|(_, until, _)| *until);
        let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let counts = view.counts;
        Ok(Response::new(Pool {
            node: self.node.clone(),
            instance_id: self.instance.id.clone(),
            instance_type: self.instance.kind.clone(),
            ready: readiness.is_ready(),
            cause,
            cause_message,
            enis: u32::try_from(view.enis.len()).unwrap_or(u32::MAX),
            eni_max: view.capacity.enis,
            total: number(counts.total),
            assigned: number(counts.assigned),
            cooling: number(counts.cooling),
            available: number(counts.available),
            waiting: number(counts.waiting),
            bound: number(counts.bound),
            prefixes: number(counts.prefixes),
            conflicts: self.conflicts.borrow().clone(),
            plan: Some(plan(&view)),
            calls: view.in_flight.iter().map(|call| call.action.to_owned()).collect(),
            pause: pause.map(|(.., refusal)| refusal.message.clone()).unwrap_or_default(),
            pause_ms: pause.map_or(0, |(_, until, _)| until.since(view.now)),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            max_pods_mismatch: mismatch(view.capacity.max_pods, view.capacity.for_pods).unwrap_or_default(),
            refused_adds: u32::try_from(self.record.refused_lately()).unwrap_or(u32::MAX),
            buckets: view.buckets().map(bucket).collect(),
            restrictions: Some(restricted(&view.pacing.restrictions)).filter(|_| view.pacing.restrictions.is_any()),
            troubles: troubles(&readiness, view.now),
            risk: in_words(readiness.risk).unwrap_or_default(),
            metrics_fault: self.metrics_fault.borrow().clone().unwrap_or_default(),
            source: in_words(readiness.source).unwrap_or_default(),
            host: in_words(readiness.host).unwrap_or_default(),
            api_server: self.api_server.borrow().iter().map(|(what, why)| format!("{what}: {why}")).collect(),
            outage: in_words(readiness.outage).unwrap_or_default(),
            settings: settings(&self.settings.borrow()),
        }))
    }

    async fn list_enis(&self, _: Request<ListEnisRequest>) -> Result<Response<ListEnisResponse>, Status> {
        let enis = self.view().await?.enis.into_iter().map(|(_, eni)| {
            let facts = &eni.facts;
            let slot = eni.slot.unwrap_or_default();
            let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
            Eni {
                id: facts.id.to_string(),
                mac: Mac(facts.mac).to_string(),
                device_index: facts.place.device_index,
                network_card: facts.place.card,
                own_v6: facts.own_v6.map(|own| own.to_string()).unwrap_or_default(),
                slot,
                primary_address: facts.primary.addr().to_string(),
                subnet_id: facts.subnet_id.to_string(),
                state: state(&eni).to_owned(),
                addresses: number(eni.sums.total),
                assigned: number(eni.sums.assigned),
                blocks: eni.blocks.iter().map(ToString::to_string).collect(),
                route_table: route_table(&eni),
            }
        });
        Ok(Response::new(ListEnisResponse { enis: enis.collect() }))
    }

    async fn list_addresses(
        &self,
        _: Request<ListAddressesRequest>,
    ) -> Result<Response<ListAddressesResponse>, Status> {
        let view = self.view().await?;
        let addresses = view.addresses().into_iter().map(|seen| {
            let (state, cooldown_ms) = match seen.state {
                AddressState::Assigned => ("assigned", 0),
                AddressState::Cooling(until) => ("cooling", until.since(view.now)),
                AddressState::Available => ("available", 0),
                AddressState::Withheld => ("withheld", 0),
            };
            let (address, block) = (seen.address.to_string(), seen.block.to_string());
            let age_ms = view.holder_of(seen.address).map_or(0, |lease| age(&view, lease));
            Address { age_ms, address, eni: seen.eni.to_string(), state: state.to_owned(), cooldown_ms, block }
        });
        Ok(Response::new(ListAddressesResponse { addresses: addresses.collect() }))
    }

    async fn list_leases(&self, _: Request<ListLeasesRequest>) -> Result<Response<ListLeasesResponse>, Status> {
        let (_, leases) = self.leases().await?;
        Ok(Response::new(ListLeasesResponse { leases }))
    }

    async fn list_operations(
        &self,
        _: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        Ok(Response::new(ListOperationsResponse { operations: self.record.operations() }))
    }

    type WatchOperationsStream = BoxStream<'static, Result<WatchedOperation, Status>>;

    async fn watch_operations(
        &self,
        _: Request<WatchOperationsRequest>,
    ) -> Result<Response<Self::WatchOperationsStream>, Status> {
        Ok(Response::new(watched(self.record.watch()).boxed()))
    }

    async fn explain(&self, asked: Request<ExplainRequest>) -> Result<Response<Explanation>, Status> {
        let ExplainRequest { source, destination } = asked.into_inner();
        let wanted = self.handle.wanted().await.ok_or_else(|| Status::unavailable("the daemon is ending"))?;
        let said = explain(&self.view().await?, &wanted, &source, &destination).await;
        said.map(Response::new).map_err(|failure| Status::failed_precondition(format!("{failure:#}")))
    }

    async fn list_faults(&self, _: Request<ListFaultsRequest>) -> Result<Response<ListFaultsResponse>, Status> {
        let failed = |failure: anyhow::Error| Status::internal(format!("cannot look at the host: {failure:#}"));
        let wanted = self.handle.wanted().await.ok_or_else(|| Status::unavailable("the daemon is ending"))?;
        let view = self.view().await?;
        let wired = view.leases().filter(|(_, lease)| lease.wired && !lease.is_being_wired());
        let pods = pod_links::pod_nets(wired);
        let of_pods = kernel::faults_of_pods(&pods, &self.handle.families);
        let (of_host, of_pods) = tokio::join!(kernel::faults(&wanted, None), of_pods);
        let drift = of_host.map_err(failed)?.into_iter().chain(of_pods.map_err(failed)?);
        let store = self.store.clone();
        let kept = tokio::task::spawn_blocking(move || store.held()).await;
        let kept = kept.map_err(|_| Status::unavailable("the daemon is ending"))?;
        let differs = match kept {
            Ok(kept) => of_store(&view, &kept),
            Err(failure) => vec![format!("the store cannot be read: {failure:#}")],
        };
        let fault = |name: &str, what| Fault { name: name.to_owned(), what };
        let drift = drift.map(|what| fault("drift", what));
        let differs = differs.into_iter().map(|what| fault("store_differs", what));
        Ok(Response::new(ListFaultsResponse { faults: drift.chain(differs).collect() }))
    }

    async fn get_recording(&self, _: Request<GetRecordingRequest>) -> Result<Response<Recording>, Status> {
        let local = self
            .recordings
            .clone()
            .ok_or_else(|| Status::permission_denied("a recording is had on debug.sock only"))?;
        let _alone =
            local.try_acquire_owned().map_err(|_| Status::resource_exhausted("another recording is being taken"))?;
        let taken = self.handle.recording().await.ok_or_else(|| Status::unavailable("the daemon is ending"))?;
        let json = tokio::task::spawn_blocking(|| taken.json()).await;
        let json = json.map_err(|_| Status::unavailable("the daemon is ending"))?;
        let json = json.map_err(|failure| Status::internal(format!("{failure:#}")))?;
        Ok(Response::new(Recording { json }))
    }

    async fn get_story(&self, asked: Request<GetStoryRequest>) -> Result<Response<Story>, Status> {
        let GetStoryRequest { pod_namespace, pod_name } = asked.into_inner();
        let operations = self.record.story(&name_of(&pod_namespace, &pod_name));
        let (view, leases) = self.leases().await?;
        let is_its = |lease: &Lease| lease.pod_namespace == pod_namespace && lease.pod_name == pod_name;
        let (cause, cause_message) = in_two(self.obstacle(&view));
        let leases = leases.into_iter().filter(is_its).collect();
        Ok(Response::new(Story { operations, leases, cause, cause_message, plan: Some(plan(&view)) }))
    }
}

/// Operations as they end.
fn watched(from: broadcast::Receiver<Arc<Operation>>) -> impl Stream<Item = Result<WatchedOperation, Status>> {
    stream::unfold(from, |mut from| async {
        let mut missed = 0;
        loop {
            match from.recv().await {
                Ok(operation) => {
                    let operation = Some((*operation).clone());
                    return Some((Ok(WatchedOperation { operation, missed }), from));
                }
                Err(RecvError::Lagged(more)) => missed += more,
                Err(RecvError::Closed) => return None,
            }
        }
    })
}

/// What the daemon holds and the store does not, the other way round, and who uses addresses without a lease.
fn of_store(view: &View, kept: &[(AttachmentKey, enid_ipamd::Lease)]) -> Vec<String> {
    let named = |key: &AttachmentKey, lease: &enid_ipamd::Lease| {
        let pod = lease.pod.as_ref().map(|pod| name_of(&pod.namespace, &pod.name));
        format!("{} of {}", lease.address, pod.unwrap_or_else(|| key.container.clone()))
    };
    let has = |key: &AttachmentKey, lease: &enid_ipamd::Lease| {
        kept.iter().any(|(other, stored)| other == key && stored.address == lease.address)
    };
    // Its verdict waits for the disk.
    let unwritten = view.leases().filter(|(key, lease)| lease.wired && !has(key, lease));
    let unwritten = unwritten.map(|(key, lease)| format!("the store does not have the lease {}", named(key, lease)));
    let ended = kept.iter().filter(|(key, lease)| view.lease(key).is_none_or(|held| held.address != lease.address));
    let ended = ended.map(|(key, lease)| format!("the store has the lease {}, which has ended", named(key, lease)));
    let orphans = view.orphans.iter().map(|address| format!("a link uses {address}, and no lease explains it"));
    unwritten.chain(ended).chain(orphans).collect()
}

fn troubles(readiness: &Readiness, now: Millis) -> Vec<Trouble> {
    let since = |kind: &str| readiness.since.get(kind).map_or(0, |(_, at)| now.since(*at));
    readiness.causes().map(|(kind, refusal)| Trouble { for_ms: since(kind), ..trouble(kind, refusal) }).collect()
}

fn trouble(kind: &str, refusal: &Refusal) -> Trouble {
    let Refusal { cause, message, request_id, .. } = refusal.clone();
    let (cause, aws_request_id) = (cause.name().to_owned(), request_id.unwrap_or_default());
    Trouble { kind: kind.to_owned(), cause, message, aws_request_id, ..Trouble::default() }
}

/// For how long a lease has been there, in milliseconds; 0 if that is not known.
fn age(view: &View, lease: &enid_ipamd::Lease) -> u64 {
    lease.since.map_or(0, |since| view.now.since(since))
}

fn bucket((action, class, now, full): (&str, Class, u32, u32)) -> Bucket {
    Bucket { action: action.to_owned(), class: class.name().to_owned(), now, full }
}

/// Its cause and its sentence; empty where nothing is refused.
fn in_two(refusal: Option<Refusal>) -> (String, String) {
    refusal.map(|refusal| (refusal.cause.to_string(), refusal.message)).unwrap_or_default()
}

fn settings(given: &InForce) -> Vec<Setting> {
    let each = SETTINGS.iter().map(|setting| {
        let ((value, origin), (next, next_origin)) = (given.now.value(setting), given.next.value(setting));
        let next = (next != value).then(|| NextValue { value: next.to_owned(), origin: next_origin.to_string() });
        Setting { name: setting.name.to_owned(), value: value.to_owned(), origin: origin.to_string(), next }
    });
    each.collect()
}

fn state(eni: &enid_ipamd::Eni) -> &'static str {
    match eni.state {
        _ if eni.unconfirmed => "unconfirmed",
        EniState::Unknown => "unknown",
        EniState::Configuring => "configuring",
        EniState::Ready if eni.excluded => "excluded",
        EniState::Ready => "ready",
        EniState::Detaching(_) => "detaching",
        EniState::Unmanaged => "unmanaged",
    }
}

/// Requests of one connection that are answered at a time. Answers that nobody reads stay in memory.
const AT_ONCE: u32 = 8;
/// A connection of which nothing comes any more for so long is asked whether it lives, and closed if it does not say so: whoever
/// reads a stream page by page needs minutes for one.
const GONE: Duration = Duration::from_secs(600);

/// What reflection names of these services.
fn reflection(services: &[&str]) -> anyhow::Result<ServerReflectionServer<impl ServerReflection + use<>>> {
    let described = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(enid_api::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    let described = services.iter().fold(described, |described, name| described.with_service_name(*name));
    described.build_v1().context("cannot describe the services")
}

/// Serves operators until the task is dropped, with reflection and health, on the socket and, if there is one, on an address; a way
/// to set health. Orders are taken on the socket only.
pub fn serve(
    service: DebugService,
    admin: Option<AdminService>,
    listeners: Listeners,
    address: Option<SocketAddr>,
) -> anyhow::Result<(impl Future<Output = anyhow::Result<()>>, HealthReporter)> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let read = ["enid.v1.Debug", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"];
    let ordered: Vec<&str> = read.into_iter().chain(admin.is_some().then_some("enid.v1.Admin")).collect();
    let (of_address, of_socket) = (reflection(&read)?, reflection(&ordered)?);
    let reporter = health.clone();
    let over_tcp = DebugServer::new(DebugService { recordings: None, ..service.clone() });
    let builder = Server::builder().max_concurrent_streams(Some(AT_ONCE)).http2_keepalive_interval(Some(GONE));
    let server = |service| builder.clone().add_service(service).add_service(health_service.clone());
    let (over_tcp, server) = (server(over_tcp), server(DebugServer::new(service)));
    let server = async move {
        health.set_serving::<DebugServer<DebugService>>().await;
        let on_address = {
            let server = over_tcp.add_service(of_address);
            async move {
                let Some(address) = address else { return std::future::pending().await };
                let listen = Listen { what: "enid.v1.Debug", setting: "ENID_DEBUG_ADDRESS", address };
                let listener = listen.bind(|_| {}).await;
                let incoming = TcpIncoming::from(listener);
                server.serve_with_incoming(incoming).await.context("the debug server ended")
            }
        };
        let incoming = Listener::start(listeners).await?.incoming();
        let server = server.add_service(of_socket).add_optional_service(admin.map(AdminServer::new));
        let on_socket = async { server.serve_with_incoming(incoming).await.context("the debug server ended") };
        tokio::select! {
            ended = on_socket => ended,
            ended = on_address => ended,
        }
    };
    Ok((server, reporter))
}
