//! `enid.v1.Admin` on debug.sock, where ENID_ADMIN allows it: what an operator has the daemon do. Each call is an operation.

use std::{path::PathBuf, sync::Arc};

use enid_api::v1::{
    Plan, ReconcileRequest, ReconcileResponse, ReleaseSurplusRequest, RestrictRequest, Restrictions,
    admin_server::Admin,
};
use enid_ipamd::{EniId, Event, View};
use tokio::sync::{Mutex, Notify};
use tonic::{Request, Response, Status, transport::server::UdsConnectInfo};

use super::contract::{plan, restricted};
use crate::{
    core::{handle::Handle, restrictions},
    record::{Begun, Kind, Record},
};

/// Who is told to look again.
#[derive(Clone, Default)]
pub struct Looks {
    /// The reader of instance metadata.
    pub metadata: Arc<Notify>,
    /// The repair of drift.
    pub kernel: Arc<Notify>,
    /// The listing of pods' links.
    pub links: Arc<Notify>,
}

/// The service.
pub struct AdminService {
    /// To the core's task.
    pub handle: Handle,
    /// What is done.
    pub record: Arc<Record>,
    /// Where it is written down what is restricted.
    pub run_dir: PathBuf,
    /// Who is told to look again.
    pub looks: Looks,
    /// One change at a time.
    pub changing: Mutex<()>,
}

impl AdminService {
    async fn view(&self) -> Result<View, Status> {
        self.handle.view().await.ok_or_else(|| Status::unavailable("the daemon is ending"))
    }

    /// An order, as it is recorded; it says which process gave it.
    fn begin<T>(&self, order: &str, asked: &Request<T>) -> (Begun, String) {
        let mut begun = self.record.begin(Kind::Admin, None, None);
        begun.about(order);
        let peer = asked.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
        let by = match peer.and_then(|peer| Some((peer.pid()?, peer.uid()))) {
            Some((pid, uid)) => format!("ordered by process {pid} of user {uid}"),
            None => "ordered over debug.sock".to_owned(),
        };
        (begun, by)
    }

    async fn restrict(&self, what: &str, lift: bool) -> Result<enid_ipamd::Restrictions, Status> {
        let _alone = self.changing.lock().await;
        let view = self.view().await?;
        let mut restrictions = view.pacing.restrictions.clone();
        match what {
            "releases" => restrictions.releases_frozen = !lift,
            "writes" => restrictions.writes_frozen = !lift,
            eni if lift => {
                let excluded: Vec<&str> = restrictions.excluded_enis.iter().map(|eni| &*eni.0).collect();
                if !excluded.contains(&eni) {
                    return Err(Status::invalid_argument(format!("{eni:?} is not excluded: {}", listed(&excluded))));
                }
                restrictions.excluded_enis.remove(&EniId(eni.into()));
            }
            eni => {
                let known: Vec<&str> = view.enis.keys().map(|eni| &*eni.0).collect();
                if !known.contains(&eni) {
                    let message = format!("{eni:?} is no ENI of this node: {}", listed(&known));
                    return Err(Status::invalid_argument(message));
                }
                restrictions.excluded_enis.insert(EniId(eni.into()));
            }
        }
        restrictions::write(&self.run_dir, &restrictions)
            .map_err(|failure| Status::internal(format!("nothing was changed: {failure:#}")))?;
        self.handle.tell(Event::Restricted { restrictions: restrictions.clone() }).await;
        Ok(restrictions)
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn restrict(&self, asked: Request<RestrictRequest>) -> Result<Response<Restrictions>, Status> {
        let RestrictRequest { what, lift } = asked.get_ref().clone();
        let order = match (&*what, lift) {
            ("releases" | "writes", false) => format!("freeze {what}"),
            ("releases" | "writes", true) => format!("unfreeze {what}"),
            (_, false) => format!("exclude {what}"),
            (_, true) => format!("include {what}"),
        };
        let (mut begun, by) = self.begin(&order, &asked);
        match AdminService::restrict(self, &what, lift).await {
            Ok(restrictions) => {
                begun.done_with(by);
                Ok(Response::new(restricted(&restrictions)))
            }
            Err(status) => {
                begun.failed(format_args!("{}; {by}", status.message()));
                Err(status)
            }
        }
    }

    async fn release_surplus(&self, asked: Request<ReleaseSurplusRequest>) -> Result<Response<Plan>, Status> {
        let (mut begun, by) = self.begin("release", &asked);
        let view = self.view().await?;
        if view.pacing.restrictions.releases_frozen || view.pacing.restrictions.writes_frozen {
            let message = "nothing is released while an operator has frozen releases or writes";
            begun.failed(format_args!("{message}; {by}"));
            return Err(Status::failed_precondition(message));
        }
        self.handle.tell(Event::ReleaseNow).await;
        begun.done_with(by);
        Ok(Response::new(plan(&self.view().await?)))
    }

    async fn reconcile(&self, asked: Request<ReconcileRequest>) -> Result<Response<ReconcileResponse>, Status> {
        let (begun, by) = self.begin("reconcile", &asked);
        self.handle.tell(Event::AuditNow).await;
        let Looks { metadata, kernel, links } = &self.looks;
        [metadata, kernel, links].into_iter().for_each(|look| look.notify_one());
        begun.done_with(by);
        Ok(Response::new(ReconcileResponse {}))
    }
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() { "there is none".to_owned() } else { format!("there are {}", names.join(", ")) }
}
