//! The picture of [`super::waste`]: idle addresses beside calls, every target on every trace.

use std::path::Path;

use anyhow::Context;
use plotters::prelude::*;

use super::waste::{Cost, Costs, play};

const COLORS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];

/// Calls for each node and day, and idle addresses on a node, on average.
fn place(cost: &Cost) -> (f64, f64) {
    (cost.calls / cost.hours * 24.0, cost.idle / cost.hours)
}

/// Radius by milliseconds that an ADD waited on average.
fn radius(cost: &Cost) -> i32 {
    let ms = cost.waits * 1000.0 / cost.adds.max(1.0);
    [1.0, 10.0, 100.0, 1000.0].into_iter().map(|limit| if ms >= limit { 4 } else { 0 }).sum::<i32>() + 4
}

/// Draws what these seeds cost into an SVG file.
pub fn draw(path: &Path, seeds: std::ops::Range<u64>) -> anyhow::Result<()> {
    let found = play(seeds)?;
    picture(path, &found).with_context(|| format!("cannot draw {}", path.display()))
}

fn picture(path: &Path, found: &[(&'static str, Costs)]) -> anyhow::Result<()> {
    let all = || found.iter().flat_map(|(_, costs)| costs.iter().map(|(_, cost)| place(cost)));
    let most = all().fold((1.0_f64, 1.0_f64), |most, at| (most.0.max(at.0), most.1.max(at.1)));
    let least = all().map(|at| at.0).fold(most.0, f64::min);
    let area = SVGBackend::new(path, (900, 560)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(14)
        .caption("What a target costs (bigger: ADDs waited, 1, 10, 100, 1000 ms on average)", ("sans-serif", 17))
        .x_label_area_size(44)
        .y_label_area_size(52)
        .build_cartesian_2d((least * 0.7..most.0 * 1.5).log_scale(), 0.0..most.1 * 1.1)?;
    chart
        .configure_mesh()
        .x_desc("EC2 calls for each node and day")
        .y_desc("idle addresses on a node")
        .light_line_style(RGBColor(235, 235, 235))
        .draw()?;
    let names: Vec<&str> =
        found.first().map(|(_, costs)| costs.iter().map(|(name, _)| *name).collect()).unwrap_or_default();
    for ((number, name), color) in names.into_iter().enumerate().zip(COLORS) {
        let points = found.iter().filter_map(|(trace, costs)| Some((*trace, costs.get(number)?.1)));
        let marks = points.map(|(trace, cost)| {
            EmptyElement::at(place(&cost))
                + Circle::new((0, 0), radius(&cost), color.mix(0.6).filled())
                + Text::new(trace, (radius(&cost) + 3, -6), ("sans-serif", 12).into_font().color(&color))
        });
        chart.draw_series(marks)?.label(name).legend(move |(x, y)| Circle::new((x + 8, y), 5, color.mix(0.6).filled()));
    }
    chart.configure_series_labels().border_style(BLACK.mix(0.3)).background_style(WHITE.mix(0.8)).draw()?;
    area.present()?;
    Ok(())
}
