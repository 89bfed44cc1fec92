//! `nunatak train curves`: how several trainings went, side by side.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use crate::cli::Globals;
use crate::cli::output;
use crate::error::{Error, Result};
use crate::plot::{Chart, Series, Stroke, lines};
use crate::train::trainer::RunLog;

/// Options of `nunatak train curves`.
#[derive(Debug, Args)]
pub struct CurvesArgs {
    /// The --out folders of trainings that measured the same thing; what is before a `=` is its name in the picture
    #[arg(required = true, value_name = "[NAME=]DIR")]
    runs: Vec<String>,
    /// The picture to write
    #[arg(long, value_name = "FILE.svg")]
    out: Option<PathBuf>,
    /// Replace a picture that is there
    #[arg(long)]
    overwrite: bool,
}

/// A training's name, what it measured, and how it went.
struct Curve {
    name: String,
    metric: String,
    log: RunLog,
}

/// Run `nunatak train curves`.
pub fn run(args: &CurvesArgs, globals: &Globals) -> Result<()> {
    args.out.iter().try_for_each(|path| output::check_new(path, args.overwrite))?;
    let curves = args.runs.iter().map(|run| read(run)).collect::<Result<Vec<_>>>()?;
    let metric = curves.first().map(|curve| curve.metric.clone()).unwrap_or_default();
    if let Some(other) = curves.iter().find(|curve| curve.metric != metric) {
        let problem = format!("{} measured {}, and the first {metric}", other.name, other.metric);
        return Err(Error::request(problem, "draw trainings that measured the same thing"));
    }
    if let Some(path) = &args.out {
        let points = |log: &RunLog| log.evaluations.iter().map(|(seen, value)| (*seen as f64, *value)).collect();
        let chart = Chart {
            title: "The measure on held-out examples, by examples seen".into(),
            x_label: "examples seen".into(),
            y_label: metric.clone(),
            series: curves
                .iter()
                .map(|curve| Series::new(&curve.name, points(&curve.log)).drawn(Stroke::Dotted))
                .collect(),
            ..Chart::default()
        };
        std::fs::write(path, lines(&chart)).map_err(Error::file("write", path))?;
    }
    if globals.json {
        let of = |curve: &Curve| json!({"name": curve.name, "metric": curve.metric, "points": curve.log.evaluations});
        return curves.iter().try_for_each(|curve| output::json(&of(curve)));
    }
    for Curve { name, log, .. } in &curves {
        let points: Vec<String> = log.evaluations.iter().map(|(seen, value)| format!("{seen}: {value:.3}")).collect();
        output::line(format!("{name} ({metric})  {}", points.join("  ")))?;
    }
    Ok(())
}

fn read(run: &str) -> Result<Curve> {
    let (name, folder) = match run.split_once('=') {
        Some((name, folder)) if !Path::new(run).is_dir() => (name.to_owned(), folder),
        _ => (Path::new(run).file_name().map_or(run.to_owned(), |n| n.to_string_lossy().into_owned()), run),
    };
    let path = Path::new(folder).join("run.json");
    let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let bad = |problem: String| Error::bad_file(&path, problem, "give the --out folder of a finished training");
    let record: Value = serde_json::from_str(&text).map_err(|e| bad(format!("it is no JSON: {e}")))?;
    let log = serde_json::from_value(record["log"].clone()).map_err(|e| bad(format!("it is no training: {e}")))?;
    Ok(Curve { name, metric: record["metric"].as_str().unwrap_or("measure").to_owned(), log })
}
