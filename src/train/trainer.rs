//! The loop that every small module is trained by.
//!
//! Examples come in an order that only the seed decides, several to a step, and in passes of at most so many tokens
//! whose gradients are added up. Everything random follows from the seed and the number of examples seen, so that a
//! run that was stopped goes on to the same bytes as one that was not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::{Tensor, Var};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::progress::{Progress, check_interrupt};
use crate::train::checkpoint;
use crate::train::llama::failed;
use crate::train::ops::Precision;
use crate::train::optimiser::{AdamW, OptimiserSettings};

/// Name of the checkpoint inside a run's folder.
pub const CHECKPOINT: &str = "checkpoint.safetensors";

/// A small module with the data it learns from.
pub trait Trainable {
    /// Number of training examples.
    fn examples(&self) -> usize;
    /// Tokens of an example, for batching.
    fn tokens(&self, example: usize) -> usize;
    /// Mean loss of some examples, as a scalar; `seen` is the number of examples before the first of them, for
    /// whatever is drawn at random for this visit.
    fn loss(&self, batch: &[usize], seen: u64) -> Result<Tensor>;
    /// What is trained, by name.
    fn variables(&self) -> Vec<(String, Var)>;
    /// How good the variables are on held-out examples; higher is better.
    fn evaluate(&mut self) -> Result<f64>;
    /// What [`Self::evaluate`] gives, in a word or two.
    fn metric(&self) -> &'static str;
}

/// How a run is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainerSettings {
    /// Examples to see in all; more than there are means going round again.
    pub examples: u64,
    /// Examples to a step of the optimiser.
    pub batch: usize,
    /// Tokens to a pass; a step takes as many passes as it needs.
    pub tokens_per_pass: usize,
    /// The optimiser.
    pub optimiser: OptimiserSettings,
    /// Examples between two evaluations.
    pub evaluate_every: u64,
    /// Stop after so many evaluations that brought nothing better; 0 = never.
    pub patience: usize,
    /// Keep what there is at the end, not what evaluated best.
    pub keep_last: bool,
    /// Decides the order of examples and everything drawn.
    pub seed: u64,
    /// How exact large products are.
    pub precision: Precision,
}

/// How far a run is, and how it went so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RunLog {
    /// Examples seen.
    pub seen: u64,
    /// Steps of the optimiser.
    pub steps: u64,
    /// Tokens computed.
    pub tokens: u64,
    /// Seconds of training, evaluations not counted, over all sittings.
    pub seconds: f64,
    /// Mean loss of each step, with the examples seen after it.
    pub losses: Vec<(u64, f64)>,
    /// Each evaluation, with the examples seen before it.
    pub evaluations: Vec<(u64, f64)>,
    /// The best of them; at the end of a run that keeps the last, the last.
    pub best: Option<(u64, f64)>,
    /// Whether it ended before all examples because nothing got better.
    pub stopped_early: bool,
}

impl RunLog {
    /// Mean loss of the last `steps` steps.
    pub fn recent_loss(&self, steps: usize) -> f64 {
        let from = self.losses.len().saturating_sub(steps);
        let recent = &self.losses[from..];
        recent.iter().map(|(_, loss)| loss).sum::<f64>() / recent.len().max(1) as f64
    }

    fn useless_evaluations(&self) -> usize {
        let best = self.best.map_or(0, |(at, _)| at);
        self.evaluations.iter().filter(|(at, _)| *at > best).count()
    }
}

/// A run in a folder.
pub struct Trainer<'a> {
    settings: &'a TrainerSettings,
    /// What must be the same for a checkpoint to be taken up: settings and hashes of what goes in.
    identity: String,
    checkpoint: PathBuf,
    /// Time between two checkpoints.
    checkpoint_every: Duration,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    identity: String,
    log: RunLog,
}

impl<'a> Trainer<'a> {
    /// A run whose checkpoint lies in `folder`. `inputs` says what goes into it besides the settings (hashes of data
    /// and models): a checkpoint of another run is refused.
    pub fn new(settings: &'a TrainerSettings, inputs: &impl Serialize, folder: &Path) -> Result<Self> {
        let identity = serde_json::to_string(&(settings, inputs)).map_err(Error::internal("naming a run"))?;
        let checkpoint = folder.join(CHECKPOINT);
        Ok(Self { settings, identity, checkpoint, checkpoint_every: Duration::from_secs(120) })
    }

    /// Write a checkpoint this often instead of every two minutes.
    pub fn checkpoint_every(self, interval: Duration) -> Self {
        Self { checkpoint_every: interval, ..self }
    }

    /// Train until the examples are seen or nothing gets better, and leave the best variables in place, or the last as the
    /// settings have it. With `resume` a checkpoint in the folder is taken up.
    ///
    /// # Errors
    /// [`Error::BadFile`] for a checkpoint in the folder without `resume`, which would be overwritten;
    /// [`Error::Interrupted`] on Ctrl-C, after a checkpoint; a gradient that is not finite; what the module says.
    pub fn run(&self, module: &mut dyn Trainable, resume: bool, progress: &dyn Progress) -> Result<RunLog> {
        let mut state = State::new(module)?;
        if self.checkpoint.is_file() {
            if !resume {
                let hint = "go on with it (--resume), or give another --out";
                return Err(Error::bad_file(&self.checkpoint, "another training lies in this folder", hint));
            }
            state.load(&self.checkpoint, &self.identity)?;
            progress.note(&format!("going on after {} examples", state.log.seen));
        }
        // One that was interrupted is made up for, so that all comes in the order of a run that was not.
        if state.log.evaluations.is_empty() || self.is_due(&state.log) {
            self.evaluate(&mut state, module, progress)?;
        }
        let mut order = Order::new(self.settings.seed, module.examples());
        self.start(&state.log, progress);
        let mut last_saved = Instant::now();
        while state.log.seen < self.settings.examples && !state.log.stopped_early {
            self.step(&mut state, module, &mut order)?;
            self.tell(&state.log, progress);
            if self.is_due(&state.log) {
                progress.finish();
                // It takes long, and Ctrl-C ends it at once.
                state.save(&self.checkpoint, &self.identity)?;
                last_saved = Instant::now();
                self.evaluate(&mut state, module, progress)?;
                self.start(&state.log, progress);
            }
            let stop = check_interrupt(|| format!("{}; go on with --resume", self.checkpoint.display()));
            if stop.is_err() || last_saved.elapsed() >= self.checkpoint_every {
                state.save(&self.checkpoint, &self.identity)?;
                last_saved = Instant::now();
            }
            stop?;
        }
        progress.finish();
        state.save(&self.checkpoint, &self.identity)?;
        if self.settings.keep_last {
            state.log.best = state.log.evaluations.last().copied();
        } else {
            state.take_best()?;
        }
        Ok(state.log)
    }

    fn start(&self, log: &RunLog, progress: &dyn Progress) {
        progress.start("training", Some(self.settings.examples), "examples");
        progress.advance(log.seen);
    }

    fn tell(&self, log: &RunLog, progress: &dyn Progress) {
        let before = log.losses.iter().rev().nth(1).map_or(0, |(seen, _)| *seen);
        progress.advance(log.seen - before);
        progress.status(&format!("loss {:.3}", log.recent_loss(20)));
    }

    fn is_due(&self, log: &RunLog) -> bool {
        let last = log.evaluations.last().map_or(0, |(at, _)| *at);
        log.seen > last && (log.seen - last >= self.settings.evaluate_every || log.seen >= self.settings.examples)
    }

    fn step(&self, state: &mut State, module: &dyn Trainable, order: &mut Order) -> Result<()> {
        let began = Instant::now();
        let rate = self.settings.optimiser.rate(state.log.seen as f64 / self.settings.examples as f64);
        let left = self.settings.examples - state.log.seen;
        let wanted = (self.settings.batch as u64).min(left);
        let batch: Vec<usize> = (0..wanted).map(|i| order.at(state.log.seen + i)).collect();
        let variables = state.optimiser.variables().to_vec();
        let mut gradients: Vec<Option<Tensor>> = vec![None; variables.len()];
        let (mut total, mut done) = (0.0, 0u64);
        for pass in passes(&batch, self.settings.tokens_per_pass, &|example| module.tokens(example)) {
            let share = pass.len() as f64 / batch.len() as f64;
            let loss = (module.loss(pass, state.log.seen + done)? * share).map_err(failed)?;
            total += f64::from(loss.to_scalar::<f32>().map_err(failed)?);
            let mut found = loss.backward().map_err(failed)?;
            for ((_, variable), sum) in variables.iter().zip(&mut gradients) {
                let Some(gradient) = found.remove(variable) else { continue };
                *sum = Some(match sum.take() {
                    Some(sum) => (sum + gradient).map_err(failed)?,
                    None => gradient,
                });
            }
            done += pass.len() as u64;
            state.log.tokens += pass.iter().map(|&example| module.tokens(example) as u64).sum::<u64>();
        }
        state.optimiser.step(&gradients, rate, &self.settings.optimiser)?;
        state.log.seen += done;
        state.log.steps = state.optimiser.steps();
        state.log.losses.push((state.log.seen, rounded(total)));
        state.log.seconds += began.elapsed().as_secs_f64();
        Ok(())
    }

    fn evaluate(&self, state: &mut State, module: &mut dyn Trainable, progress: &dyn Progress) -> Result<()> {
        let value = rounded(module.evaluate()?);
        state.log.evaluations.push((state.log.seen, value));
        let loss = if state.log.losses.is_empty() {
            String::new()
        } else {
            format!(", loss {:.3}", state.log.recent_loss(50))
        };
        progress.note(&format!("after {} examples: {} {value:.4}{loss}", state.log.seen, module.metric()));
        if state.log.best.is_none_or(|(_, best)| value > best) {
            state.log.best = Some((state.log.seen, value));
            state.keep_best()?;
        }
        let useless = state.log.useless_evaluations();
        state.log.stopped_early = self.settings.patience > 0 && useless >= self.settings.patience;
        Ok(())
    }
}

struct State {
    optimiser: AdamW,
    best: BTreeMap<String, Tensor>,
    log: RunLog,
}

impl State {
    fn new(module: &dyn Trainable) -> Result<Self> {
        Ok(Self { optimiser: AdamW::new(module.variables())?, best: BTreeMap::new(), log: RunLog::default() })
    }

    fn keep_best(&mut self) -> Result<()> {
        self.best.clear();
        for (name, variable) in self.optimiser.variables() {
            // `Var::set` writes into the variable's own memory, so a copy is needed.
            self.best.insert(name.clone(), variable.copy().map_err(failed)?.detach());
        }
        Ok(())
    }

    fn take_best(&self) -> Result<()> {
        for (name, variable) in self.optimiser.variables() {
            if let Some(best) = self.best.get(name) {
                variable.set(best).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn save(&self, path: &Path, identity: &str) -> Result<()> {
        let mut tensors = self.optimiser.state();
        tensors.extend(self.best.iter().map(|(name, tensor)| (format!("best.{name}"), tensor.clone())));
        checkpoint::save(path, &tensors, &Saved { identity: identity.to_owned(), log: self.log.clone() })
    }

    fn load(&mut self, path: &Path, identity: &str) -> Result<()> {
        let device = self.optimiser.variables().first().map(|(_, v)| v.device().clone());
        let (tensors, saved) = checkpoint::load::<Saved>(path, &device.unwrap_or(candle_core::Device::Cpu))?;
        if saved.identity != identity {
            return Err(Error::bad_file(
                path,
                "it is the checkpoint of a run with other settings, data or models",
                "give the same options, or start again without --resume, in another folder",
            ));
        }
        self.optimiser.restore(&tensors, saved.log.steps)?;
        let best = tensors.into_iter().filter_map(|(name, t)| Some((name.strip_prefix("best.")?.to_owned(), t)));
        self.best = best.collect();
        self.log = saved.log;
        Ok(())
    }
}

/// Six decimals: as exact as anybody reads, and the same after a way through JSON, which the log takes.
fn rounded(x: f64) -> f64 {
    (x * 1e6).round() / 1e6
}

/// Which example comes when: a new permutation for every round.
struct Order {
    seed: u64,
    examples: usize,
    round: Option<(u64, Vec<usize>)>,
}

impl Order {
    fn new(seed: u64, examples: usize) -> Self {
        Self { seed, examples, round: None }
    }

    fn at(&mut self, seen: u64) -> usize {
        let examples = self.examples.max(1) as u64;
        let (round, at) = (seen / examples, (seen % examples) as usize);
        if self.round.as_ref().is_none_or(|(current, _)| *current != round) {
            let mut random = ChaCha8Rng::seed_from_u64(self.seed);
            random.set_stream(round);
            let mut order: Vec<usize> = (0..self.examples).collect();
            order.shuffle(&mut random);
            self.round = Some((round, order));
        }
        self.round.as_ref().and_then(|(_, order)| order.get(at)).copied().unwrap_or(0)
    }
}

/// Split a step's examples into passes of at most `limit` tokens; an example that is longer has a pass of its own.
fn passes<'a>(batch: &'a [usize], limit: usize, tokens: &dyn Fn(usize) -> usize) -> Vec<&'a [usize]> {
    let (mut passes, mut from, mut sum) = (Vec::new(), 0, 0);
    for (i, &example) in batch.iter().enumerate() {
        let more = tokens(example);
        if i > from && sum + more > limit {
            passes.push(&batch[from..i]);
            (from, sum) = (i, 0);
        }
        sum += more;
    }
    if from < batch.len() {
        passes.push(&batch[from..]);
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Quiet;
    use candle_core::Device;

    /// Fits `x` to numbers: the loss of example i is `(x - i)^2`.
    struct Mean {
        x: Var,
        examples: usize,
        measured: usize,
    }

    impl Mean {
        fn new() -> Self {
            Self { x: Var::new(&[10.0f32], &Device::Cpu).unwrap(), examples: 5, measured: 0 }
        }

        fn value(&self) -> f32 {
            self.x.to_vec1().unwrap()[0]
        }
    }

    impl Trainable for Mean {
        fn examples(&self) -> usize {
            self.examples
        }

        fn tokens(&self, example: usize) -> usize {
            example + 1
        }

        fn loss(&self, batch: &[usize], _: u64) -> Result<Tensor> {
            let targets: Vec<f32> = batch.iter().map(|&i| i as f32).collect();
            let loss = || self.x.broadcast_sub(&Tensor::new(targets.as_slice(), &Device::Cpu)?)?.sqr()?.mean_all();
            loss().map_err(failed)
        }

        fn variables(&self) -> Vec<(String, Var)> {
            vec![("x".into(), self.x.clone())]
        }

        fn evaluate(&mut self) -> Result<f64> {
            self.measured += 1;
            Ok(-f64::from((self.value() - 2.0).abs()))
        }

        fn metric(&self) -> &'static str {
            "nearness"
        }
    }

    fn settings(examples: u64) -> TrainerSettings {
        TrainerSettings {
            examples,
            batch: 4,
            tokens_per_pass: 6,
            optimiser: OptimiserSettings { learning_rate: 0.2, warm_up: 0.1, weight_decay: 0.0, clip: 5.0 },
            evaluate_every: 40,
            patience: 0,
            keep_last: false,
            seed: 3,
            precision: Precision::F32,
        }
    }

    #[test]
    fn it_learns_and_keeps_the_best() {
        let dir = tempfile::tempdir().unwrap();
        let mut mean = Mean::new();
        let settings = settings(400);
        let log = Trainer::new(&settings, &(), dir.path()).unwrap().run(&mut mean, false, &Quiet).unwrap();
        assert_eq!((log.seen, log.steps), (400, 100));
        assert_eq!(log.evaluations.len(), 11);
        let (_, best) = log.best.unwrap();
        assert_eq!(best, rounded(-f64::from((mean.value() - 2.0).abs())));
        assert!(log.evaluations.iter().all(|(_, value)| *value <= best) && best > -0.5);
        assert!(log.losses.last().unwrap().1 < log.losses[0].1);
    }

    #[test]
    fn a_run_that_was_stopped_goes_on_exactly() {
        /// Stops as Ctrl-C would, at the third measure.
        struct Stopped(Mean);
        impl Trainable for Stopped {
            fn examples(&self) -> usize {
                self.0.examples()
            }
            fn tokens(&self, example: usize) -> usize {
                self.0.tokens(example)
            }
            fn loss(&self, batch: &[usize], seen: u64) -> Result<Tensor> {
                self.0.loss(batch, seen)
            }
            fn variables(&self) -> Vec<(String, Var)> {
                self.0.variables()
            }
            fn evaluate(&mut self) -> Result<f64> {
                if self.0.measured == 3 {
                    return Err(Error::Interrupted { kept: "a checkpoint".into() });
                }
                self.0.evaluate()
            }
            fn metric(&self) -> &'static str {
                self.0.metric()
            }
        }
        let settings = settings(300);
        let trainer = |dir: &Path| Trainer::new(&settings, &"the same data", dir).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut whole = Mean::new();
        let whole_log = trainer(dir.path()).run(&mut whole, false, &Quiet).unwrap();
        // Also where no checkpoint was due by the clock.
        for interval in [Duration::ZERO, Duration::from_secs(3600)] {
            let dir = tempfile::tempdir().unwrap();
            let trainer = || trainer(dir.path()).checkpoint_every(interval);
            let mut stopped = Stopped(Mean::new());
            assert!(trainer().run(&mut stopped, false, &Quiet).is_err());
            let mut resumed = Mean::new();
            let log = trainer().run(&mut resumed, true, &Quiet).unwrap();
            assert_eq!(resumed.value(), whole.value());
            assert_eq!((&log.losses, &log.evaluations), (&whole_log.losses, &whole_log.evaluations));
            assert_eq!(resumed.measured, whole.measured - 3, "it went on from the measure that was stopped");
        }
    }

    #[test]
    fn a_training_that_lies_in_the_folder_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(40);
        let run = |resume| Trainer::new(&settings, &(), dir.path()).unwrap().run(&mut Mean::new(), resume, &Quiet);
        let log = run(false).unwrap();
        assert!(run(false).unwrap_err().to_string().contains("another training lies in this folder"));
        assert_eq!(run(true).unwrap().evaluations, log.evaluations);
    }

    #[test]
    fn the_last_is_kept_where_that_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut mean = Mean::new();
        let settings = TrainerSettings { keep_last: true, evaluate_every: 4, ..settings(400) };
        let log = Trainer::new(&settings, &"data", dir.path()).unwrap().run(&mut mean, false, &Quiet).unwrap();
        assert_eq!(log.best, log.evaluations.last().copied());
        let kept = log.best.unwrap().1;
        assert_eq!(kept, rounded(-f64::from((mean.value() - 2.0).abs())));
        assert!(log.evaluations.iter().any(|(_, value)| *value > kept), "the last is the best here: nothing is shown");
    }

    #[test]
    fn a_checkpoint_of_other_settings_or_data_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = settings(40);
        Trainer::new(&first, &"data", dir.path()).unwrap().run(&mut Mean::new(), false, &Quiet).unwrap();
        let other = TrainerSettings { seed: 4, ..first.clone() };
        for (settings, data) in [(&other, "data"), (&first, "other data")] {
            let trainer = Trainer::new(settings, &data, dir.path()).unwrap();
            let error = trainer.run(&mut Mean::new(), true, &Quiet).unwrap_err();
            assert!(error.to_string().contains("other settings, data or models"), "{error}");
        }
    }

    #[test]
    fn it_stops_when_nothing_gets_better() {
        let dir = tempfile::tempdir().unwrap();
        let mut mean = Mean::new();
        mean.x.set(&Tensor::new(&[2.0f32], &Device::Cpu).unwrap()).unwrap();
        let settings = TrainerSettings { patience: 2, ..settings(4000) };
        let log = Trainer::new(&settings, &(), dir.path()).unwrap().run(&mut mean, false, &Quiet).unwrap();
        assert!(log.stopped_early && log.seen <= 120, "{}", log.seen);
        assert_eq!(mean.value(), 2.0);
    }

    #[test]
    fn every_example_comes_once_a_round() {
        let mut order = Order::new(1, 7);
        for round in 0..3 {
            let mut seen: Vec<usize> = (0..7).map(|i| order.at(round * 7 + i)).collect();
            seen.sort_unstable();
            assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
        }
    }

    #[test]
    fn passes_keep_the_limit_and_the_order() {
        let batch = [3, 9, 1, 4, 2];
        let passes = passes(&batch, 8, &|example| example);
        assert_eq!(passes.concat(), batch);
        assert_eq!(passes, [&[3][..], &[9], &[1, 4, 2]]);
    }
}
