//! `make bench`, its second part: what a pod pays for the others on its node. Packet rate, echo and ADD with ten to a
//! thousand pods, beside a node that has ten all the time; and the same with two `ip rule`s for each pod, which is how
//! others steer. Packets count where they arrive.

use std::path::Path;

use anyhow::Context;
use comfy_table::{Table, presets::NOTHING};
use enid_tests::{
    Backend, Daemon, Lab, LabConfig, Place, Pod,
    traffic::{PORT, Sink, Spot},
};
use plotters::prelude::*;

/// Pods on the node that grows. 110 and 250 are Kubernetes' and EKS's usual limits, 737 is Amazon's for the largest.
const SIZES: [usize; 5] = [10, 110, 250, 737, 1000];
/// Turns, one flood on each node: many and short ones, since a difference of three per cent has to show.
const PAIRS: usize = 192;
/// With two rules for each pod, where the difference is a multiple.
const RULES_PAIRS: usize = 24;
const FLOOD_MS: u64 = 100;
/// ADDs at each size, the last of those that fill it up.
const ADDS: usize = 20;
/// Of the rate with ten pods, at the largest size.
const TARGET: f64 = 0.97;

/// What one size cost.
struct Cost {
    pods: usize,
    /// With our own steering, and with two rules for each pod beside it.
    rates: [Ratio; 2],
    /// Packets a second with our own, and their part of what was sent.
    received: (f64, f64),
    echo_ms: f64,
    add_ms: f64,
}

/// Median and its interval of 95 %.
#[derive(Clone, Copy)]
struct Ratio {
    low: f64,
    median: f64,
    high: f64,
}

impl Ratio {
    /// Order statistics: the number of values below the true median is that of heads in so many throws of a coin. For
    /// 24 values these are the 7th and the 18th (97.7 %), for 192 the 82nd and the 111th (96.4 %).
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let (half, reach) = (values.len() / 2, values.len().isqrt() + 1);
        let (low, high) = (values[half - 1 - reach], values[half + reach]);
        Ratio { low, median: median(values), high }
    }
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [plot] = args.as_slice() else { anyhow::bail!("scale SVG") };
    let config = LabConfig {
        nodes: 3,
        instance_type: "m5.24xlarge".to_owned(),
        ec2: Backend::Model,
        large_subnets: true,
        ..LabConfig::default()
    };
    let lab = Lab::up(&config)?;
    // Two nodes of one subnet, and what both send to in another.
    let [grows, target, stays] = [0, 1, 2].map(|node| Place::node(&lab, node));
    let settings = [("ENABLE_PREFIX_DELEGATION", "true"), ("AWS_VPC_K8S_CNI_LOGLEVEL", "warn")];
    let _daemons = [Daemon::start(grows, &settings)?, Daemon::start(stays, &settings)?];
    let sink = Sink::open(target)?;
    let to = &lab.node(1).address;
    let mut on_stays = Vec::new();
    fill(stays, 2, SIZES[0], &mut on_stays)?;
    let mut on_grows = Vec::new();
    let mut costs = Vec::new();
    for pods in SIZES {
        let mut adds = fill(grows, 0, pods, &mut on_grows)?;
        adds = adds.split_off(adds.len().saturating_sub(ADDS));
        let spots = [spot(grows, &on_grows)?, spot(stays, &on_stays)?];
        // Fills the sink's queue, and every cache on the way.
        spots.iter().try_for_each(|spot| spot.flood(to, PORT, FLOOD_MS).map(drop))?;
        let (ours, received) = compare(&spots, &sink, to, PAIRS)?;
        let echo_ms = spots[0].echo_ms(to)?;
        for (place, pods) in [(grows, &on_grows), (stays, &on_stays)] {
            two_rules_each(place, pods, "add")?;
        }
        let (rules, _) = compare(&spots, &sink, to, RULES_PAIRS)?;
        for (place, pods) in [(grows, &on_grows), (stays, &on_stays)] {
            two_rules_each(place, pods, "del")?;
        }
        eprintln!("{pods} pods: {:.3} of the rate with {}", ours.median, SIZES[0]);
        costs.push(Cost { pods, rates: [ours, rules], received, echo_ms, add_ms: median(adds) });
    }
    println!("{}", table(&costs));
    if let Some(Cost { pods, rates: [ours, _], .. }) = costs.last() {
        let verdict = if ours.median >= TARGET { "met" } else { "MISSED" };
        println!("target, {TARGET} of the rate at {pods} pods: {verdict} with {:.3}", ours.median);
    }
    draw(Path::new(plot), &costs).with_context(|| format!("cannot draw {plot}"))
}

/// Adds pods until there are so many; what each ADD took, in milliseconds.
fn fill(place: Place<'_>, node: usize, count: usize, pods: &mut Vec<(Pod, String)>) -> anyhow::Result<Vec<f64>> {
    let mut adds = Vec::new();
    while pods.len() < count {
        let pod = Pod::new(node, &format!("scale-{}", pods.len()));
        let (address, took) = pod.add(place)?;
        adds.push(took.as_secs_f64() * 1000.0);
        pods.push((pod, address));
    }
    Ok(adds)
}

/// The pod that was made last on the primary ENI, where those of the other node are: its rules would be the last asked.
fn spot<'a>(place: Place<'a>, pods: &'a [(Pod, String)]) -> anyhow::Result<Spot<'a>> {
    let leases = place.leases()?;
    let eni = |address: &str| leases.iter().find(|lease| lease["address"] == address).map(|lease| lease["eni"].clone());
    let primary = pods.first().and_then(|(_, address)| eni(address));
    let last = pods.iter().rev().find(|(_, address)| eni(address) == primary);
    Ok(Spot { place, netns: last.map(|(pod, _)| pod.name.as_str()) })
}

/// Packet rate of the one node's pod divided by the other's, in pairs that either begins in turn; and what of the first
/// one's has arrived.
fn compare(spots: &[Spot<'_>; 2], sink: &Sink<'_>, to: &str, pairs: usize) -> anyhow::Result<(Ratio, (f64, f64))> {
    let (mut ratios, mut rates, mut parts) = (Vec::new(), Vec::new(), Vec::new());
    let mut order = [0, 1];
    for _ in 0..pairs {
        let mut pair = [(0.0, 0.0); 2];
        for who in order {
            pair[who] = flood(spots[who], sink, to)?;
        }
        order.reverse();
        let [(grows, part), (stays, _)] = pair;
        ratios.push(grows / stays);
        rates.push(grows);
        parts.push(part);
    }
    Ok((Ratio::of(ratios), (median(rates), median(parts))))
}

/// Packets a second that arrive, and their part of those that are sent.
fn flood(from: Spot<'_>, sink: &Sink<'_>, to: &str) -> anyhow::Result<(f64, f64)> {
    let before = sink.received()?;
    let (sent, seconds) = from.flood(to, PORT, FLOOD_MS)?;
    let received = f64::from(sink.received()?.wrapping_sub(before));
    Ok((received / seconds, received / f64::from(sent)))
}

/// As Amazon's VPC CNI has them for each pod on a secondary ENI.
fn two_rules_each(place: Place<'_>, pods: &[(Pod, String)], verb: &str) -> anyhow::Result<()> {
    let rules: String = pods
        .iter()
        .map(|(_, address)| {
            format!("rule {verb} pref 512 to {address} lookup main\nrule {verb} pref 1536 from {address} lookup main\n")
        })
        .collect();
    place.sh(&format!("ip -batch - <<'RULES'\n{rules}RULES")).map(drop)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 }
}

fn table(costs: &[Cost]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "pods",
        "packet rate / with 10 pods",
        "95 %",
        "with two rules per pod",
        "95 %",
        "packets/s",
        "arrived",
        "echo ms",
        "ADD ms",
    ]);
    for Cost { pods, rates: [ours, rules], received: (received, part), echo_ms, add_ms } in costs {
        let interval = |ratio: &Ratio| format!("{:.3} to {:.3}", ratio.low, ratio.high);
        table.add_row([
            pods.to_string(),
            format!("{:.3}", ours.median),
            interval(ours),
            format!("{:.3}", rules.median),
            interval(rules),
            format!("{received:.0}"),
            format!("{:.1} %", 100.0 * part),
            format!("{echo_ms:.3}"),
            format!("{add_ms:.1}"),
        ]);
    }
    table
}

fn draw(path: &Path, costs: &[Cost]) -> anyhow::Result<()> {
    let area = SVGBackend::new(path, (760, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let caption = "Packets a second of one pod, as a part of those with ten pods on the node";
    let mut chart = ChartBuilder::on(&area)
        .margin(14)
        .caption(caption, ("sans-serif", 17))
        .x_label_area_size(44)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..1050.0, 0.0..1.2)?;
    chart.configure_mesh().x_desc("pods on the node").light_line_style(RGBColor(235, 235, 235)).draw()?;
    let lines = [("Enid", RGBColor(0, 114, 178)), ("and two rules for each pod", RGBColor(213, 94, 0))];
    for (number, (name, color)) in lines.into_iter().enumerate() {
        let at = |cost: &Cost| f64::from(u32::try_from(cost.pods).unwrap_or(u32::MAX));
        let line =
            LineSeries::new(costs.iter().map(|cost| (at(cost), cost.rates[number].median)), color.stroke_width(2));
        chart
            .draw_series(line)?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 4), (x + 12, y + 4)], color.filled()));
        let bars = costs.iter().map(|cost| {
            let Ratio { low, median, high } = cost.rates[number];
            ErrorBar::new_vertical(at(cost), low, median, high, color.filled(), 6)
        });
        chart.draw_series(bars)?;
    }
    chart.configure_series_labels().position(SeriesLabelPosition::LowerLeft).background_style(WHITE).draw()?;
    Ok(area.present()?)
}
