//! Quantiles of what was measured.

use std::time::Duration;

use anyhow::Context;

pub fn mib(bytes: u64) -> anyhow::Result<f64> {
    Ok(f64::from(u32::try_from(bytes / 1024)?) / 1024.0)
}

pub fn sorted(series: &[serde_json::Value], key: &str) -> anyhow::Result<Vec<f64>> {
    let mut list = Vec::new();
    for times in series {
        let times = times[key].as_array().with_context(|| format!("no times of {key}"))?;
        list.extend(times.iter().filter_map(serde_json::Value::as_f64));
    }
    list.sort_by(f64::total_cmp);
    Ok(list)
}

/// The time below which this part of the runs stays (nearest rank).
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    let below = sorted.iter().enumerate().filter(|(index, _)| share(*index, sorted.len()) < part).count();
    sorted[below.min(sorted.len() - 1)]
}

pub fn share(index: usize, length: usize) -> f64 {
    let number = |value: usize| f64::from(u32::try_from(value).unwrap_or(u32::MAX));
    number(index + 1) / number(length)
}

pub fn middle(each: Vec<Duration>) -> f64 {
    let mut each: Vec<f64> = each.into_iter().map(ms).collect();
    each.sort_by(f64::total_cmp);
    quantile(&each, 0.5)
}

pub fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}
