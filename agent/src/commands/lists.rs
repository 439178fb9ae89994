//! `enid enis` and `enid pods`.

use anyhow::Context;
use enid_api::v1::{Eni, Lease, ListEnisRequest, ListLeasesRequest};

use super::{
    connect::{NoDaemon, debug, reply},
    words::took,
};
use crate::{
    print::{Output, column, show, table, wide},
    record::name_of,
    settings::Settings,
    store,
};

/// The ENIs.
pub async fn enis(settings: &Settings, output: Output) -> anyhow::Result<()> {
    let mut debug = debug(settings).await?;
    let enis = reply(debug.list_enis(ListEnisRequest {})).await?.enis;
    let columns = [
        column("ENI"),
        column("STATE"),
        column("DEVICE"),
        column("PRIMARY ADDRESS"),
        column("ASSIGNED"),
        column("SUBNET"),
        wide("SLOT"),
        wide("TABLE"),
        wide("MAC"),
        wide("BLOCKS"),
        wide("OWN IPV6"),
    ];
    let rows = |eni: &Eni| {
        [
            eni.id.clone(),
            eni.state.clone(),
            device(eni),
            eni.primary_address.clone(),
            format!("{}/{}", eni.assigned, many(eni.addresses)),
            eni.subnet_id.clone(),
            eni.slot.to_string(),
            eni.route_table.to_string(),
            eni.mac.clone(),
            eni.blocks.join(" "),
            eni.own_v6.clone(),
        ]
    };
    show(output, &enis, || table(output, columns, enis.iter().map(rows)))
}

/// The pods.
pub async fn pods(settings: &Settings, output: Output) -> anyhow::Result<()> {
    let said = async {
        let mut debug = debug(settings).await?;
        reply(debug.list_leases(ListLeasesRequest {})).await
    };
    match said.await {
        // A program is not told what may be over.
        Err(failure) if failure.is::<NoDaemon>() && output.is_for_people() => {
            list(output, &of_store(settings)?)?;
            eprintln!("enid: these are the leases that the store has; whether their links stand only the kernel says");
            Err(failure)
        }
        said => list(output, &said?.leases),
    }
}

fn list(output: Output, leases: &[Lease]) -> anyhow::Result<()> {
    let columns = [
        column("POD"),
        column("ADDRESS"),
        column("ENI"),
        column("STATE"),
        column("HOST LINK"),
        wide("AGE"),
        wide("INTERFACE"),
        wide("CONTAINER"),
        wide("NETWORK"),
    ];
    show(output, &leases, || {
        let rows = leases.iter().map(|lease| {
            let name = name_of(&lease.pod_namespace, &lease.pod_name);
            let pod = if lease.pod_name.is_empty() { String::new() } else { name };
            let addresses = addresses(lease);
            let Lease { eni, state, host_ifname, ifname, container, network, .. } = lease.clone();
            let age = if lease.age_ms > 0 { took(lease.age_ms * 1_000) } else { String::new() };
            [pod, addresses, eni, state, host_ifname, age, ifname, container, network]
        });
        table(output, columns, rows)
    })
}

/// The leases as the last run of the daemon has left them.
fn of_store(settings: &Settings) -> anyhow::Result<Vec<Lease>> {
    let leases = store::leases(&settings.store_dir, &settings.run_dir).context("the store cannot be read")?;
    let each = leases.into_iter().map(|(key, lease)| {
        let (pod_namespace, pod_name) = lease.pod.clone().map(|pod| (pod.namespace, pod.name)).unwrap_or_default();
        Lease {
            network: key.network,
            container: key.container,
            ifname: key.ifname,
            pod_namespace,
            pod_name,
            address: lease.address.to_string(),
            second_address: lease.second.map(|second| second.to_string()).unwrap_or_default(),
            eni: lease.eni.to_string(),
            ..Lease::default()
        }
    });
    Ok(each.collect())
}

/// A lease's address, or both.
pub fn addresses(lease: &Lease) -> String {
    [&*lease.address, &*lease.second_address].join(" ").trim_end().to_owned()
}

/// A number of addresses; a /80 is not counted out.
pub fn many(addresses: u32) -> String {
    if addresses > u32::MAX / 2 { "many".to_owned() } else { addresses.to_string() }
}

/// Its index, behind the network card's if that is not the first.
fn device(eni: &Eni) -> String {
    match eni.network_card {
        0 => eni.device_index.to_string(),
        card => format!("{card}/{}", eni.device_index),
    }
}
