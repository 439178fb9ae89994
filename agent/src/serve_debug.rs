//! `enid.v1.Debug` on debug.sock: the state, read from the core at that moment.

use enid_api::v1::{
    Address, Eni, GetPoolRequest, Lease, ListAddressesRequest, ListAddressesResponse, ListEnisRequest,
    ListEnisResponse, ListLeasesRequest, ListLeasesResponse, Pool, debug_server::Debug,
};
use enid_datapath::{Mac, marks};
use enid_ipamd::{AddressState, EniState, View};
use tonic::{Request, Response, Status};

use crate::{
    brain::{Handle, since},
    imds::Instance,
    serve_cni::host_ifname,
};

/// The service.
pub struct DebugService {
    /// To the brain.
    pub handle: Handle,
    /// The node's name.
    pub node: String,
    /// The instance.
    pub instance: Instance,
    /// First letters of pods' host links.
    pub veth_prefix: String,
}

impl DebugService {
    async fn view(&self) -> Result<View, Status> {
        self.handle.view().await.ok_or_else(|| Status::unavailable("the daemon is ending"))
    }
}

#[tonic::async_trait]
impl Debug for DebugService {
    async fn get_pool(&self, _: Request<GetPoolRequest>) -> Result<Response<Pool>, Status> {
        let view = self.view().await?;
        let (cause, cause_message) = match &view.obstacle {
            Some(refusal) => (refusal.cause.to_string(), refusal.message.clone()),
            None => Default::default(),
        };
        let pause = view.pause.as_ref().filter(|(until, _)| *until > view.now);
        Ok(Response::new(Pool {
            node: self.node.clone(),
            instance_id: self.instance.id.clone(),
            instance_type: self.instance.kind.clone(),
            ready: view.obstacle.is_none() && view.broken.is_empty(),
            cause,
            cause_message,
            enis: u32::try_from(view.enis.len()).unwrap_or(u32::MAX),
            eni_max: view.eni_max,
            total: view.counts.total,
            assigned: view.assigned,
            resting: view.resting,
            available: view.counts.available,
            waiting: view.counts.waiting,
            calls: view.calls.iter().map(|action| (*action).to_owned()).collect(),
            pause: pause.map(|(_, refusal)| refusal.message.clone()).unwrap_or_default(),
            pause_ms: pause.map_or(0, |(until, _)| since(&view, *until)),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn list_enis(&self, _: Request<ListEnisRequest>) -> Result<Response<ListEnisResponse>, Status> {
        let enis = self.view().await?.enis.into_iter().map(|view| {
            let facts = &view.eni.facts;
            let slot = view.eni.slot.unwrap_or_default();
            Eni {
                id: facts.id.0.clone(),
                mac: Mac(facts.mac).to_string(),
                device_index: facts.device_index,
                slot,
                primary_address: facts.primary.addr().to_string(),
                subnet_id: facts.subnet_id.clone(),
                state: state(view.eni.state).to_owned(),
                addresses: u32::try_from(facts.addresses.len()).unwrap_or(u32::MAX),
                assigned: view.assigned,
                route_table: if slot == 0 { 254 } else { marks::route_table(facts.device_index, facts.card) },
            }
        });
        Ok(Response::new(ListEnisResponse { enis: enis.collect() }))
    }

    async fn list_addresses(
        &self,
        _: Request<ListAddressesRequest>,
    ) -> Result<Response<ListAddressesResponse>, Status> {
        let view = self.view().await?;
        let addresses = view.addresses.iter().map(|seen| {
            let (state, rests_ms) = match seen.state {
                AddressState::Assigned => ("assigned", 0),
                AddressState::Resting(until) => ("resting", since(&view, until)),
                AddressState::Available => ("available", 0),
            };
            Address { address: seen.address.to_string(), eni: seen.eni.clone(), state: state.to_owned(), rests_ms }
        });
        Ok(Response::new(ListAddressesResponse { addresses: addresses.collect() }))
    }

    async fn list_leases(&self, _: Request<ListLeasesRequest>) -> Result<Response<ListLeasesResponse>, Status> {
        let leases = self.view().await?.leases.into_iter().map(|view| {
            let host_ifname = host_ifname(&view.key, &view.lease, &self.veth_prefix);
            let (pod_namespace, pod_name) = view.lease.pod.map(|pod| (pod.namespace, pod.name)).unwrap_or_default();
            Lease {
                network: view.key.network,
                container: view.key.container,
                ifname: view.key.ifname,
                pod_namespace,
                pod_name,
                address: view.lease.address.to_string(),
                eni: view.lease.eni.0,
                state: if view.lease.wired { "wired" } else { "reserved" }.to_owned(),
                host_ifname,
            }
        });
        Ok(Response::new(ListLeasesResponse { leases: leases.collect() }))
    }
}

fn state(state: EniState) -> &'static str {
    match state {
        EniState::Unknown => "unknown",
        EniState::Joining => "joining",
        EniState::Ready => "ready",
        EniState::Foreign => "foreign",
    }
}
