//! What evaluation and training read: questions, tasks, rankings, predictions, reports, calibrations.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nunatak::confidence::Calibration;
use nunatak::eval::report::Report;
use nunatak::eval::{dataset, out_dir, task_set, trec};
use nunatak::progress::Quiet;

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, bytes) = input;
    match kind % 6 {
        0 => drop(dataset::read(&nunatak_fuzz::file("questions.jsonl", bytes), usize::from(kind) / 6, &Quiet)),
        1 => drop(task_set::read(&[nunatak_fuzz::file("tasks.jsonl", bytes)], usize::from(kind) / 6, &Quiet)),
        2 => drop(trec::read(bytes, "run.trec".as_ref())),
        3 => drop(out_dir::read_predictions(&nunatak_fuzz::file("predictions.jsonl", bytes), |_| Ok(()))),
        4 => drop(Report::open(&nunatak_fuzz::file("report.json", bytes))),
        _ => drop(Calibration::open(&nunatak_fuzz::file("calibration.json", bytes))),
    }
});
