//! An exported language model as the tests run it: whole tensors in, whole tensors out.

use std::path::Path;

use half::f16;
use nunatak::runtime::model_dir::{LmShape, ModelDir, ModelKind};
use nunatak::runtime::session::{Input, Output, RuntimeOptions, Session};

/// Both graphs of a model folder.
pub struct Graphs {
    embed: Session,
    model: Session,
    pub shape: LmShape,
}

/// Keys and values of every layer: `[batch, kv_heads, capacity, head_dim]` each.
#[derive(Clone)]
pub struct Cache {
    pub tensors: Vec<Vec<f32>>,
    pub capacity: usize,
}

/// What one run gave.
pub struct Step {
    /// `[asked rows, vocab]`
    pub logits: Output,
    /// `[batch, sequence, hidden]`
    pub states: Output,
    pub cache: Cache,
}

impl Graphs {
    pub fn open(folder: &Path) -> Self {
        let model = ModelDir::open(folder).unwrap();
        let options = RuntimeOptions { threads: 2, ..RuntimeOptions::default() };
        let ModelKind::Lm(shape) = &model.description.kind else { panic!("not a language model") };
        Self {
            embed: Session::open(&model.file("embed.onnx"), &options).unwrap(),
            model: Session::open(&model.graph(), &options).unwrap(),
            shape: shape.clone(),
        }
    }

    /// A cache of zeros.
    pub fn cache(&self, batch: usize, capacity: usize) -> Cache {
        let one = vec![0.0; batch * self.shape.kv_heads * capacity * self.shape.head_dim];
        Cache { tensors: vec![one; 2 * self.shape.layers], capacity }
    }

    /// Run `prompts` (equally long; row-major) after what `cache` holds. `lengths` says for each prompt how
    /// much of the cache is filled afterwards; all logits come back.
    pub fn run(&mut self, prompts: &[&[u32]], lengths: &[usize], cache: &Cache) -> Step {
        let (batch, sequence) = (prompts.len(), prompts[0].len());
        let rows: Vec<i64> = (0..(batch * sequence) as i64).collect();
        self.run_for(prompts, lengths, cache, &rows)
    }

    /// The same, for the logits of these rows of the flattened positions.
    pub fn run_for(&mut self, prompts: &[&[u32]], lengths: &[usize], cache: &Cache, rows: &[i64]) -> Step {
        let (batch, sequence) = (prompts.len(), prompts[0].len());
        let total = *lengths.iter().max().unwrap();
        let ids: Vec<i64> = prompts.iter().flat_map(|p| p.iter().map(|&id| i64::from(id))).collect();
        let embeds = self.embed.run(&[("input_ids", Input::I64(&ids, &[batch, sequence]))], &["inputs_embeds"]);
        let embeds = embeds.unwrap().remove(0);
        let mask: Vec<i64> =
            lengths.iter().flat_map(|&length| (0..total).map(move |i| i64::from(i < length))).collect();
        let mask_shape = [batch, total];
        let row_shape = [rows.len()];
        let cache_shape = [batch, self.shape.kv_heads, cache.capacity, self.shape.head_dim];
        let halves: Vec<Vec<f16>> = if self.shape.kv_dtype == "f16" {
            cache.tensors.iter().map(|t| t.iter().map(|&x| f16::from_f32(x)).collect()).collect()
        } else {
            Vec::new()
        };
        let names = |stem: &str| -> Vec<String> {
            (0..self.shape.layers).flat_map(|i| ["key", "value"].map(|kind| format!("{stem}.{i}.{kind}"))).collect()
        };
        let past = names("past_key_values");
        let present = names("present");
        let mut inputs = vec![
            ("inputs_embeds", Input::F32(&embeds.data, &embeds.shape)),
            ("attention_mask", Input::I64(&mask, &mask_shape)),
            ("logit_rows", Input::I64(rows, &row_shape)),
        ];
        for (i, name) in past.iter().enumerate() {
            inputs.push((
                name,
                if halves.is_empty() {
                    Input::F32(&cache.tensors[i], &cache_shape)
                } else {
                    Input::F16(&halves[i], &cache_shape)
                },
            ));
        }
        let mut outputs = vec!["logits", "hidden_states"];
        outputs.extend(present.iter().map(String::as_str));
        let mut results = self.model.run(&inputs, &outputs).unwrap().into_iter();
        let (logits, states) = (results.next().unwrap(), results.next().unwrap());
        let kept: Vec<Output> = results.collect();
        let capacity = kept[0].shape[2];
        Step { logits, states, cache: Cache { tensors: kept.into_iter().map(|t| t.data).collect(), capacity } }
    }
}
