//! The daemon's start: settings, store, metadata, limits, then the brain and its faces.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use enid_api::v1::debug_server::DebugServer;
use enid_datapath::Family;
use enid_ipamd::{Core, Event, Ledger, Node, Provisioning};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
    time::{Instant, timeout},
};
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tracing::{info, warn};

use crate::{
    aws::ec2::Ec2,
    aws::imds::{Imds, Instance},
    aws::limits,
    clock,
    core::handle::Handle,
    core::readiness::Readiness,
    core::task::{Brain, Parts, Published},
    families,
    host::deletion::Deletion,
    host::kernel::{self, Kernel},
    host::nft,
    metrics::Counters,
    reconcile::repair::Repair,
    reconcile::{forward::Forward, links::Links},
    runtime::{conflist, versions::Versions},
    serve::cni::CniService,
    serve::debug::{CNI_HEALTH, DebugService},
    serve::metrics,
    serve::packets::Listener,
    serve::sockets,
    settings::Settings,
    store::{self, Store},
};

/// How often metadata is read when nothing is expected: it is node-local, and the one poll there is.
const METADATA: Duration = Duration::from_secs(30);

/// How often the network configuration is looked at.
const CONFLIST: Duration = Duration::from_secs(5);

/// Runs the daemon until it is told to end.
pub fn run(settings: Settings) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::new(format!("warn,enid={}", settings.log_level));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    if settings.log_json {
        log.json().init()
    } else {
        log.with_ansi(false).init()
    }
    // The brain and the plugins' socket share this thread, so a pod's request never waits for another
    // thread to wake up. Everything else has a thread of its own: EC2, metadata, operators, metrics.
    let elsewhere = runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("enid-aside")
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let pods = runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
    pods.block_on(serve(settings, elsewhere.handle().clone()))
}

async fn serve(mut settings: Settings, elsewhere: runtime::Handle) -> anyhow::Result<()> {
    // All that can be wrong here is told before anything is changed.
    let _claimed = sockets::claim(&settings.run_dir)?;
    nft::check().await?;
    conflist::check(&settings)?;
    let metrics = match settings.metrics {
        Some(address) => Some(metrics::bind(address)?),
        None => None,
    };
    conflist::hide_stale(&settings)?;
    let boot = store::boot_id()?;
    let (store, ledger) = Store::open(&settings.store_dir, &boot, clock::now(), settings.policy.cooldown_ms)?;
    let store = Arc::new(store);
    let imds = Imds::new();
    let instance = instance(&imds, settings.start_wait).await?;
    info!(
        node = settings.node_name,
        instance = instance.id,
        kind = instance.kind,
        leases = ledger.leases.len(),
        "start"
    );
    families::settle(&mut settings, &instance, &ledger)?;
    let ec2 = Ec2::new(instance.clone(), &settings).await;
    let counters = Arc::new(Counters::new()?);
    let limits = match settings.policy.provisioning {
        Provisioning::ImdsOnly => limits::without_ec2(&store, &instance)?,
        _ => limits::read(&ec2, &store, &instance, &counters).await?,
    };
    families::check(&settings, &limits, &instance)?;
    // Two lives of a node must not share a client token: the boot and the moment tell them apart.
    let token_seed = format!("{}-{}", boot.split('-').next().unwrap_or_default(), clock::now().0);
    let node = Node { instance_id: instance.id.clone(), limits, policy: settings.policy.clone(), token_seed };
    let kernel_slots = kernel::slots(&settings.steering.policy).await?;
    let core = Core::new(node, Ledger { kernel_slots, ..ledger });
    let kernel = Kernel::new(&settings.run_dir);
    let parts = Parts {
        core,
        store,
        ec2,
        counters: counters.clone(),
        vpc: instance.vpc_cidrs.clone(),
        steering: settings.steering.clone(),
        kernel: kernel.clone(),
        probes: settings.forward_probe,
        elsewhere: elsewhere.clone(),
    };
    let (brain, handle, Published { hurries, awaits_listing, readiness }) = Brain::new(parts);
    let conflicts = watch::Sender::new(Vec::new());
    let seen_conflicts = conflicts.subscribe();
    let (hooks, changed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let links = Links { handle: handle.clone(), changed: changed.clone(), awaited: awaits_listing };
    let vpc = instance.vpc_cidrs.clone();
    let forward = Forward { handle: handle.clone(), kernel: kernel.clone(), changed: hooks.clone(), vpc };
    let probes = settings.forward_probe;
    let forward = async move { if probes { forward.run().await } else { std::future::pending().await } };
    let v6 = settings.steering.policy.knows(Family::V6);
    let repair =
        Repair { handle: handle.clone(), kernel, counters: counters.clone(), conflicts, hooks, links: changed, v6 };

    let plugins = Listener::bind(&sockets::cni(&settings.run_dir))?;
    let debug = {
        let _entered = elsewhere.enter();
        sockets::listen(&sockets::debug(&settings.run_dir))?
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<DebugServer<DebugService>>().await;
    let cni_service = CniService {
        handle: handle.clone(),
        counters: counters.clone(),
        deletion: Deletion::start(&elsewhere),
        pod_mtu: settings.pod_mtu,
        veth_prefix: settings.veth_prefix.clone(),
        multi_card: settings.policy.multi_card,
        readiness: readiness.clone(),
    };
    let debug_service = DebugService {
        handle: handle.clone(),
        node: settings.node_name.clone(),
        instance,
        readiness: readiness.clone(),
        shadows: seen_conflicts,
    };
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(enid_api::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .context("cannot describe the services")?;
    let operators = Server::builder()
        .add_service(DebugServer::new(debug_service))
        .add_service(health_service)
        .add_service(reflection)
        .serve_with_incoming(sockets::incoming(debug));
    let (asked, asked_too) = (handle.clone(), readiness.clone());
    let metrics_server = async move {
        match metrics {
            Some(listener) => metrics::serve(listener, asked, asked_too, counters).await,
            None => std::future::pending().await,
        }
    };
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    tokio::select! {
        ended = tokio::spawn(brain.run()) => { ended?; anyhow::bail!("the brain ended") }
        ended = tokio::spawn(cni_service.run(plugins)) => { ended?; anyhow::bail!("the plugins' server ended") }
        ended = elsewhere.spawn(operators) => ended?.context("the debug server ended"),
        ended = elsewhere.spawn(metrics_server) => ended?,
        ended = elsewhere.spawn(read_metadata(imds, handle.clone(), hurries)) => { ended?; anyhow::bail!("the metadata reader ended") }
        ended = elsewhere.spawn(links.run()) => { ended?; anyhow::bail!("the listing of links ended") }
        ended = elsewhere.spawn(repair.run()) => { ended??; anyhow::bail!("the repair ended") }
        ended = elsewhere.spawn(forward) => ended?,
        ended = elsewhere.spawn(announce(settings, readiness, health)) => ended?,
        _ = terminate.recv() => { info!("told to end; pods keep their links"); Ok(()) }
        _ = interrupt.recv() => { info!("interrupted; pods keep their links"); Ok(()) }
    }
}

async fn instance(imds: &Imds, wait: Duration) -> anyhow::Result<Instance> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(100);
    loop {
        match imds.instance().await {
            Ok(instance) => return Ok(instance),
            Err(failure) if started.elapsed() + pause >= wait => {
                let waited = wait.as_secs();
                return Err(failure.context(format!(
                    "the instance metadata service did not answer within {waited} s (ENID_START_WAIT); \
                     enid needs IMDSv2, at AWS_EC2_METADATA_SERVICE_ENDPOINT or 169.254.169.254"
                )));
            }
            Err(failure) => warn!("instance metadata: {failure:#}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

async fn read_metadata(imds: Imds, handle: Handle, mut hurries: watch::Receiver<bool>) {
    const SOON: Duration = Duration::from_millis(50);
    let mut pause = SOON;
    loop {
        match imds.enis().await {
            Ok((enis, bare)) => {
                handle.tell(Event::Wall { ms: clock::wall_ms() }).await;
                handle.tell(Event::Imds { enis, addressless: bare }).await;
            }
            Err(failure) => warn!("instance metadata: {failure:#}"),
        }
        match imds.vpc_cidrs().await {
            Ok(cidrs) => handle.vpc(cidrs).await,
            Err(failure) => warn!("instance metadata: {failure:#}"),
        }
        let wait = if *hurries.borrow_and_update() { pause } else { METADATA };
        match timeout(wait, hurries.changed()).await {
            Ok(Ok(())) => pause = SOON,
            Ok(Err(_)) => return, // the brain has ended
            Err(_) => pause = (pause * 2).min(Duration::from_secs(1)),
        }
    }
}

/// Tells the runtime and health's readers when an address can be given.
async fn announce(
    settings: Settings,
    mut readiness: watch::Receiver<Readiness>,
    health: tonic_health::server::HealthReporter,
) -> anyhow::Result<()> {
    let (mut announced, mut versions) = (false, Versions::default());
    loop {
        let ready = readiness.borrow_and_update().is_ready();
        // Once it is there it stays: one that somebody takes away is put back.
        if ready || announced {
            announced = conflist::write(&settings, &mut versions).await?;
        }
        if ready {
            health.set_service_status(CNI_HEALTH, ServingStatus::Serving).await;
        } else {
            health.set_service_status(CNI_HEALTH, ServingStatus::NotServing).await;
        }
        if let Ok(Err(_)) = timeout(CONFLIST, readiness.changed()).await {
            return Ok(()); // the brain has ended
        }
    }
}
