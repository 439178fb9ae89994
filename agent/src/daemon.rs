//! The daemon: what it starts, in which order, and what ends it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use enid_datapath::Family;
use enid_ipamd::{Core, Ledger, Node, Provisioning, Restrictions};
use socket2::Type;
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::{Mutex, Notify, Semaphore, watch},
};
use tracing::{info, warn};

use crate::{
    aws::ec2::Ec2,
    aws::imds::{Imds, Instance},
    aws::limits,
    clock,
    core::published::Published,
    core::readiness::Readiness,
    core::restrictions,
    core::task::{CoreTask, Parts},
    families::{self, Unfit},
    handback::{self, mark},
    host::deletion::Deletion,
    host::kernel::{self, Kernel},
    host::nft,
    host::pod_links,
    host::sockets::{self, Claim, Place},
    kubernetes::{self, Kubernetes, Phase, Started},
    log::{self, Level},
    metrics::Counters,
    reconcile::repair::Repair,
    reconcile::{forward::Forward, links::Links, metadata::Metadata},
    record::{Record, kept::Kept, spans::Spans},
    runtime::{announce, conflist, files::Files},
    serve::admin::{AdminService, Looks},
    serve::cni::CniService,
    serve::debug::{self, DebugService},
    serve::health,
    serve::introspection,
    serve::metrics,
    serve::packets::Plugins,
    settings::{
        Settings,
        given::{Given, Overrides, Rejected},
        remembered::{self, Remembered, as_on_node},
    },
    store::{self, Store},
    takeover,
};

/// What is under way has so long to end when the node is given back.
const LAST_MOMENTS: Duration = Duration::from_secs(10);

/// Runs the daemon until it is asked to stop. `settings`: what is given without NodeConfigs.
pub fn run(given: Given, settings: Settings) -> anyhow::Result<()> {
    let log_level = log::start(&settings);
    if !settings.ignored.is_empty() {
        warn!("these variables of Amazon's VPC CNI have no effect: {}", settings.ignored.join("; "));
    }
    // The core's task and the plugins' socket share this thread, so a pod's request never waits for another thread to
    // wake up. Everything else shares another thread: EC2, metadata, metrics.
    let background = runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("enid-background")
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    // Operators have one, too: a list of a thousand operations is nobody else's delay.
    let operators = runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("enid-operators")
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let pods = runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
    let others = (background.handle().clone(), operators.handle().clone());
    match pods.block_on(serve(given.clone(), settings.clone(), log_level, others))? {
        Ended::Stopped => Ok(()),
        Ended::Unwanted => {
            // All that serves pods ends with them, and lets go of the folder and the store.
            drop(pods);
            operators.shutdown_background();
            background.shutdown_timeout(LAST_MOMENTS);
            let alone =
                runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
            alone.block_on(handback::waiting::stay(&as_on_node(&given, settings)))
        }
    }
}

/// Why the daemon serves no pods any more.
enum Ended {
    /// It was asked to stop.
    Stopped,
    /// The node is to be given back to Amazon's VPC CNI, or was.
    Unwanted,
}

/// What NodeConfigs give.
struct Heard {
    /// As heard last or, by a node that has never heard of any, as the API server says now.
    overrides: Overrides,
    /// To the last start.
    last: Overrides,
    /// To the next start, as far as it is on disk.
    remembered: Option<Overrides>,
}

async fn heard(given: &Given, settings: &Settings) -> Heard {
    let (heard, last, remembered) = match remembered::read(settings) {
        Some(Remembered { heard, started, .. }) => (heard.clone(), started, Some(heard)),
        None => match kubernetes::node_configs(given, settings).await {
            Ok(heard) => (heard.unwrap_or_default(), Overrides::new(), None),
            Err(failure) => {
                warn!("it is not known what NodeConfigs give to this node: {failure:#}");
                (Overrides::new(), Overrides::new(), None)
            }
        },
    };
    let (accepted, rejected) = given.accept(heard, &Overrides::new());
    rejected.iter().for_each(|Rejected { config, why, .. }| warn!("NodeConfig {config}: {why}"));
    Heard { overrides: accepted, last, remembered }
}

/// What a start finds on its node.
struct Found {
    /// The settings as given, and as they fit the node.
    given: Given,
    settings: Settings,
    /// What the core's task starts with.
    parts: Parts,
    instance: Instance,
    /// IPv6 is off for want of an address.
    lacks_v6: bool,
    /// Where pods' stories go.
    kept: Arc<Kept>,
}

/// What NodeConfigs give does not keep a daemon from starting: what this node cannot have is left out, and pods keep what they
/// have of earlier ones.
async fn discover_or_fall_back(
    given: &Given,
    started: &Overrides,
    announced: bool,
    imds: &Imds,
    counters: &Arc<Counters>,
    background: &runtime::Handle,
) -> anyhow::Result<Found> {
    let mut first = None;
    for given in [given.clone()].into_iter().chain(given.fallbacks(started)) {
        let mut settings = read(&given)?;
        match discover(&mut settings, announced, imds, counters, background).await {
            Ok((parts, instance, lacks_v6, kept)) => {
                return Ok(Found { given, settings, parts, instance, lacks_v6, kept: Arc::new(kept) });
            }
            Err(failure) if failure.is::<Unfit>() => {
                warn!("the node cannot have its settings: {failure:#}");
                first.get_or_insert(failure);
            }
            Err(failure) => return Err(failure),
        }
    }
    Err(first.unwrap_or_else(|| anyhow!("no settings were tried")))
}

fn read(given: &Given) -> anyhow::Result<Settings> {
    given.read().map_err(|mistakes| anyhow!("{}", mistakes.iter().map(|it| &*it.text).collect::<Vec<_>>().join("; ")))
}

async fn serve(
    given: Given,
    settings: Settings,
    log_level: Level,
    (background, for_operators): (runtime::Handle, runtime::Handle),
) -> anyhow::Result<Ended> {
    let base = settings;
    let Heard { overrides, last, mut remembered } = heard(&given, &base).await;
    let wanted = given.with(overrides);
    log_level(&read(&wanted)?.log_level);
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    // All that can be wrong here is reported before anything is changed.
    let claim = Claim::new(&base.run_dir)?;
    // One that cannot be read is a matter of people: it is said, and waited for.
    if !mark::read(&base).is_ok_and(|mark| mark.is_none()) {
        return Ok(Ended::Unwanted);
    }
    tokio::select! {
        () = takeover::wait::wait(&base) => {}
        _ = terminate.recv() => { info!("asked to stop before it has begun"); return Ok(Ended::Stopped) }
        _ = interrupt.recv() => { info!("interrupted before it has begun"); return Ok(Ended::Stopped) }
    }
    if mark::remove(&base)? {
        info!("this node was given back under another pod of the daemon; it is wanted again");
    }
    nft::check().await?;
    conflist::check(&base)?;
    let announced = conflist::hide_stale(&base)?;

    let imds = Imds::new();
    let counters = Arc::new(Counters::new()?);
    let began = Instant::now();
    let Found { given, settings, parts, instance, lacks_v6, kept } =
        discover_or_fall_back(&wanted, &last, announced, &imds, &counters, &background).await?;
    counters.read_node(began.elapsed());
    let refused = (given != wanted).then(|| wanted.overrides().clone());
    if *given.overrides() != last {
        // The pods have it from now on, whatever is heard.
        match remembered::write(&settings, wanted.overrides(), given.overrides()) {
            Ok(()) => remembered = Some(wanted.overrides().clone()),
            Err(failure) => warn!("a later start may not know what pods have: {failure:#}"),
        }
    }
    let started = Started { given, settings: settings.clone(), refused, remembered };
    let (kernel, to_retire, store) = (parts.kernel.clone(), parts.kernel.clone(), parts.store.clone());
    let record = parts.record.clone();
    let (task, handle, published) = CoreTask::new(parts);
    let Published { awaited, awaits_listing, readiness } = published;

    let (hooks, looks) = (Arc::new(Notify::new()), Looks::default());
    let link_changes = looks.links.clone();
    let (conflicts, seen_conflicts) = watch::channel(Vec::new());
    let links = Links { handle: handle.clone(), changed: link_changes.clone(), awaited: awaits_listing };
    let forward = Forward {
        handle: handle.clone(),
        kernel: kernel.clone(),
        changed: hooks.clone(),
        vpc: instance.vpc_cidrs.clone(),
        probes: settings.forward_probe,
        sys_net: settings.sys_net_dir.clone(),
    };
    let repair = Repair {
        handle: handle.clone(),
        kernel,
        counters: counters.clone(),
        record: record.clone(),
        conflicts,
        hooks,
        links: link_changes,
        asked: looks.kernel.clone(),
        v6: settings.steering.policy.knows(Family::V6),
    };
    let (plugins_place, plugins) = Place::listen(sockets::cni(&settings.run_dir), Type::SEQPACKET)?;
    let (phase, seen_phase) = watch::channel(Phase::Serving);
    let (kubernetes, tell, seen) = Kubernetes::new(
        started,
        log_level,
        instance.id.clone(),
        handle.clone(),
        &record,
        readiness.clone(),
        seen_phase,
    );
    let cni = CniService {
        tell,
        handle: handle.clone(),
        record: record.clone(),
        deletion: Deletion::start(&background),
        pod_mtu: settings.pod_mtu,
        veth_prefix: settings.veth_prefix.clone(),
        multi_card: settings.policy.multi_card,
        readiness: readiness.clone(),
        background: background.clone(),
    };
    let (metrics_fault, seen_metrics_fault) = watch::channel(None);
    let debug = DebugService {
        recordings: Some(Arc::new(Semaphore::new(1))),
        handle: handle.clone(),
        record: record.clone(),
        store: store.clone(),
        metrics_fault: seen_metrics_fault,
        node: settings.node_name.clone(),
        instance,
        readiness: readiness.clone(),
        conflicts: seen_conflicts,
        api_server: seen.faults,
        settings: seen.settings.clone(),
    };
    let (operators_place, operators) = Place::listen(sockets::debug(&settings.run_dir), Type::STREAM)?;
    let admin = settings.admin.then(|| AdminService {
        handle: handle.clone(),
        record: record.clone(),
        run_dir: settings.run_dir.clone(),
        looks: looks.clone(),
        changing: Mutex::default(),
    });
    let (debug, reporter) = debug::serve(debug, admin, operators, settings.debug)?;
    let places = [plugins_place, operators_place];
    let files = Files::new(settings.clone(), handle.clone(), counters.clone(), store.clone(), claim, places);
    let metadata =
        Metadata { imds, handle: handle.clone(), counters: counters.clone(), asked: looks.metadata, lacks_v6 };
    let metrics = metrics::serve(settings.metrics, handle.clone(), readiness.clone(), counters.clone(), metrics_fault);
    let retire = takeover::retire::Retire { kernel: to_retire, settings: Arc::new(settings.clone()), phase };
    let health = health::serve(settings.health, sockets::cni(&settings.run_dir));

    let introspection = introspection::serve(
        settings.introspection,
        introspection::Shown {
            handle: handle.clone(),
            settings: settings.steering.clone(),
            given: seen.settings.clone(),
            eni_config: seen.eni_config,
        },
    );
    background.spawn(once_served(readiness.clone(), counters.clone(), began));
    let keeping = kept.clone().keep(record.clone());
    let ended = tokio::select! {
        ended = background.spawn(keeping) => { ended?; bail!("the record of what is done ended") }
        ended = tokio::spawn(task.run()) => { ended?; bail!("the core's task ended") }
        ended = tokio::spawn(cni.run(Plugins::start(plugins).await?)) => { ended?; bail!("the plugins' server ended") }
        ended = for_operators.spawn(debug) => ended?.map(|()| Ended::Stopped),
        ended = background.spawn(metrics) => ended?.map(|()| Ended::Stopped),
        ended = background.spawn(introspection) => ended?.map(|()| Ended::Stopped),
        ended = background.spawn(health) => ended?.map(|()| Ended::Stopped),
        ended = background.spawn(metadata.run(awaited)) => { ended??; bail!("the metadata reader ended") }
        ended = background.spawn(links.run()) => { ended?; bail!("the listing of links ended") }
        ended = background.spawn(repair.run()) => { ended??; bail!("the repair ended") }
        ended = background.spawn(retire.run()) => { ended??; bail!("the take-over ended") }
        ended = background.spawn(forward.run()) => ended?.map(|()| Ended::Stopped),
        ended = background.spawn(kubernetes.run()) => { ended?; bail!("the API server's watches ended") }
        ended = background.spawn(announce::run(files, store, readiness, reporter)) => ended?.map(|()| Ended::Stopped),
        ended = background.spawn(async move { handback::waiting::asked(&base).await }) => ended.map(|()| Ended::Unwanted).map_err(Into::into),
        _ = terminate.recv() => { info!("asked to stop; pods keep their links"); Ok(Ended::Stopped) }
        _ = interrupt.recv() => { info!("interrupted; pods keep their links"); Ok(Ended::Stopped) }
    };
    if let Err(failure) = kept.write(&record) {
        warn!("the last stories of pods are lost: {failure:#}");
    }
    // It has a bound, and nothing comes after it.
    let _ = tokio::task::spawn_blocking(move || record.end_traces()).await;
    ended
}

/// Counts how long it took until the first address could be given.
async fn once_served(mut readiness: watch::Receiver<Readiness>, counters: Arc<Counters>, began: Instant) {
    if readiness.wait_for(|readiness| readiness.served).await.is_ok() {
        counters.serves(began.elapsed());
    }
}

/// What an operator has restricted in this boot. Without ENID_ADMIN nobody could lift it.
fn restricted(settings: &Settings) -> anyhow::Result<Restrictions> {
    if settings.admin {
        let restrictions = restrictions::read(&settings.run_dir)?;
        if restrictions.is_any() {
            warn!("an operator has restricted what the daemon does: {restrictions:?}");
        }
        return Ok(restrictions);
    }
    if restrictions::remove(&settings.run_dir)? {
        warn!("what an operator had restricted is lifted, since ENID_ADMIN is off");
    }
    Ok(Restrictions::default())
}

/// Reads store, metadata, limits and kernel, and makes of them what the core's task starts with; and whether IPv6 is off for
/// want of an address, and where pods' stories go. `announced`: the network configuration of this boot is there.
async fn discover(
    settings: &mut Settings,
    announced: bool,
    imds: &Imds,
    counters: &Arc<Counters>,
    background: &runtime::Handle,
) -> anyhow::Result<(Parts, Instance, bool, Kept)> {
    conflist::check(settings).map_err(|failure| Unfit(format!("{failure:#}")))?;
    let boot = store::boot_id()?;
    let instance = imds.wait_for_instance(settings.start_wait).await?;
    let (store, ledger) = Store::open(&settings.store_dir, &boot, &instance.identity(), settings.policy.cooldown_ms)?;
    // A node that this daemon could not serve stays as it is.
    let ec2 = Ec2::new(instance.clone(), settings).await;
    let limits = match settings.policy.provisioning {
        Provisioning::ImdsOnly => limits::without_ec2(&store, &instance)?,
        _ => limits::read(&ec2, &store, &instance, counters).await?,
    };
    families::check(settings, &limits, &instance)?;
    let kernel_slots = kernel::slots(&settings.steering.policy).await?;
    let ledger = takeover::adopt::adopt(settings, imds, &store, Ledger { kernel_slots, ..ledger }).await?;
    let (id, kind, leases) = (&instance.id, &instance.kind, ledger.leases.len());
    info!(node = settings.node_name, instance = id, kind, leases, "start");
    let lacks_v6 = families::settle(settings, &instance, &ledger, &pod_links::carried().await?)?;
    families::check(settings, &limits, &instance)?;
    let ec2 = ec2.within(&limits);
    // Two runs of the daemon must not share a client token: the boot and the moment tell them apart.
    let token_seed = format!("{}-{}", boot.split('-').next().unwrap_or_default(), clock::now().0);
    let restrictions = restricted(settings)?;
    let node = Node { instance_id: id.clone(), limits, policy: settings.policy.clone(), restrictions, token_seed };
    let (kept, stories) = Kept::open(&settings.store_dir);
    let spans = {
        let _there = background.enter(); // no pod waits for it
        let start = |endpoint: &String| {
            let started = Spans::start(endpoint, &settings.node_name, id);
            // Pods do not depend on it.
            started.inspect_err(|failure| warn!("{failure:#} (OTEL_EXPORTER_OTLP_ENDPOINT)")).ok()
        };
        settings.traces.as_ref().and_then(start)
    };
    let parts = Parts {
        core: Core::new(node, ledger),
        served: announced || store.has_served()?,
        store: Arc::new(store),
        ec2,
        counters: counters.clone(),
        record: Record::new(counters.clone(), stories, spans),
        vpc: instance.vpc_cidrs.clone(),
        steering: settings.steering.clone(),
        kernel: Kernel::new(&settings.run_dir, &settings.sys_net_dir),
        probes: settings.forward_probe,
        background: background.clone(),
    };
    Ok((parts, instance, lacks_v6, kept))
}
