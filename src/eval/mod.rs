//! Measurement: data sets, metrics, runs, paired tests, reports.
