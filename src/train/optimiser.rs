//! AdamW with a warm-up and linear decay, and clipping by the global norm.
//!
//! candle-nn has an AdamW, but keeps its moments to itself; a run that goes on exactly where it stopped needs them.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::train::llama::failed;

/// How variables follow their gradients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OptimiserSettings {
    /// Largest learning rate, reached at the end of the warm-up.
    pub learning_rate: f64,
    /// Share of the run over which the rate rises from 0; after it the rate falls to 0 in a straight line.
    pub warm_up: f64,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f64,
    /// Largest global norm of the gradient; longer ones are scaled down to it.
    pub clip: f64,
}

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

impl OptimiserSettings {
    /// The learning rate after a share `done` (0 to 1) of the run.
    pub fn rate(&self, done: f64) -> f64 {
        let factor = if done < self.warm_up { done / self.warm_up } else { (1.0 - done) / (1.0 - self.warm_up) };
        self.learning_rate * factor.clamp(0.0, 1.0)
    }
}

/// AdamW (Loshchilov and Hutter, 2019) over named variables.
#[derive(Debug)]
pub struct AdamW {
    variables: Vec<(String, Var)>,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
    steps: u64,
}

impl AdamW {
    /// Moments of zero.
    pub fn new(variables: Vec<(String, Var)>) -> Result<Self> {
        let zeros = || variables.iter().map(|(_, v)| v.zeros_like()).collect::<candle_core::Result<Vec<_>>>();
        let (first, second) = (zeros().map_err(failed)?, zeros().map_err(failed)?);
        Ok(Self { variables, first, second, steps: 0 })
    }

    /// The variables.
    pub fn variables(&self) -> &[(String, Var)] {
        &self.variables
    }

    /// Steps made.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One step along `gradients`, one a variable; `None` for a variable that had no part. Returns the norm of the
    /// gradient before clipping. A gradient that is not finite changes nothing and is an error.
    pub fn step(&mut self, gradients: &[Option<Tensor>], rate: f64, settings: &OptimiserSettings) -> Result<f64> {
        let norm = global_norm(gradients).map_err(failed)?;
        if !norm.is_finite() {
            return Err(Error::request(
                format!("the gradient is not finite at step {}", self.steps + 1),
                "lower the learning rate with --lr; the last checkpoint is as it was",
            ));
        }
        self.steps += 1;
        let scale = if norm > settings.clip { settings.clip / norm } else { 1.0 };
        for (i, gradient) in gradients.iter().enumerate() {
            if let Some(gradient) = gradient {
                self.update(i, gradient, scale, rate, settings).map_err(failed)?;
            }
        }
        Ok(norm)
    }

    fn update(
        &mut self,
        i: usize,
        gradient: &Tensor,
        scale: f64,
        rate: f64,
        settings: &OptimiserSettings,
    ) -> candle_core::Result<()> {
        let (Some((_, variable)), Some(first), Some(second)) =
            (self.variables.get(i), self.first.get_mut(i), self.second.get_mut(i))
        else {
            return Ok(());
        };
        let gradient = (gradient.detach() * scale)?;
        *first = ((&*first * BETA_1)? + (&gradient * (1.0 - BETA_1))?)?;
        *second = ((&*second * BETA_2)? + (gradient.sqr()? * (1.0 - BETA_2))?)?;
        let steps = self.steps as f64;
        let mean = (&*first / (1.0 - BETA_1.powf(steps)))?;
        let spread = ((&*second / (1.0 - BETA_2.powf(steps)))?.sqrt()? + EPSILON)?;
        let decayed = (variable.as_detached_tensor() * (1.0 - rate * settings.weight_decay))?;
        variable.set(&(decayed - ((mean / spread)? * rate)?)?)
    }

    /// Everything that a later [`Self::restore`] needs, by name.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let mut state = BTreeMap::new();
        for (((name, variable), first), second) in self.variables.iter().zip(&self.first).zip(&self.second) {
            state.insert(format!("value.{name}"), variable.as_detached_tensor());
            state.insert(format!("first.{name}"), first.clone());
            state.insert(format!("second.{name}"), second.clone());
        }
        state
    }

    /// Take up variables and moments from `state`, made after `steps` steps.
    ///
    /// # Errors
    /// Names what is missing or of another shape.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>, steps: u64) -> Result<()> {
        let get = |part: &str, name: &str, like: &Var| -> Result<Tensor> {
            let tensor = state.get(&format!("{part}.{name}")).filter(|t| t.dims() == like.dims());
            tensor.cloned().ok_or_else(|| {
                Error::request(
                    format!("the checkpoint has no {part} of {name} with the shape {:?}", like.dims()),
                    "it was made with other settings; start again without --resume, in another folder",
                )
            })
        };
        for (i, (name, variable)) in self.variables.iter().enumerate() {
            variable.set(&get("value", name, variable)?).map_err(failed)?;
            self.first[i] = get("first", name, variable)?;
            self.second[i] = get("second", name, variable)?;
        }
        self.steps = steps;
        Ok(())
    }
}

fn global_norm(gradients: &[Option<Tensor>]) -> candle_core::Result<f64> {
    let mut sum = 0.0;
    for gradient in gradients.iter().flatten() {
        sum += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    Ok(sum.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn settings() -> OptimiserSettings {
        OptimiserSettings { learning_rate: 0.1, warm_up: 0.1, weight_decay: 0.0, clip: 1.0 }
    }

    fn variable(x: f32) -> Vec<(String, Var)> {
        vec![("x".into(), Var::new(&[x, -x], &Device::Cpu).unwrap())]
    }

    fn values(adam: &AdamW) -> Vec<f32> {
        adam.variables()[0].1.to_vec1().unwrap()
    }

    fn run(adam: &mut AdamW, steps: usize) {
        for _ in 0..steps {
            let x = adam.variables()[0].1.clone();
            let gradient = x.sqr().unwrap().sum_all().unwrap().backward().unwrap().get(&x).cloned();
            adam.step(&[gradient], 0.1, &settings()).unwrap();
        }
    }

    #[test]
    fn it_walks_downhill() {
        let mut adam = AdamW::new(variable(3.0)).unwrap();
        run(&mut adam, 200);
        assert!(values(&adam).iter().all(|x| x.abs() < 0.05), "{:?}", values(&adam));
    }

    #[test]
    fn the_first_step_has_the_length_of_the_rate() {
        let mut adam = AdamW::new(variable(3.0)).unwrap();
        run(&mut adam, 1);
        assert!((values(&adam)[0] - 2.9).abs() < 1e-5);
    }

    #[test]
    fn a_restored_run_goes_on_exactly() {
        let (mut whole, mut half) = (AdamW::new(variable(3.0)).unwrap(), AdamW::new(variable(3.0)).unwrap());
        run(&mut whole, 20);
        run(&mut half, 9);
        let mut resumed = AdamW::new(variable(7.0)).unwrap();
        resumed.restore(&half.state(), half.steps()).unwrap();
        run(&mut resumed, 11);
        assert_eq!(values(&whole), values(&resumed));
    }

    #[test]
    fn a_gradient_that_is_no_number_changes_nothing() {
        let mut adam = AdamW::new(variable(3.0)).unwrap();
        let bad = Tensor::new(&[f32::NAN, 0.0], &Device::Cpu).unwrap();
        assert!(adam.step(&[Some(bad)], 0.1, &settings()).is_err());
        assert_eq!(values(&adam), [3.0, -3.0]);
    }

    #[test]
    fn the_rate_rises_and_falls() {
        let settings = settings();
        assert_eq!(settings.rate(0.0), 0.0);
        assert!((settings.rate(0.05) - 0.05).abs() < 1e-12);
        assert!((settings.rate(0.1) - 0.1).abs() < 1e-12);
        assert!((settings.rate(0.55) - 0.05).abs() < 1e-12);
        assert_eq!(settings.rate(1.0), 0.0);
    }
}
