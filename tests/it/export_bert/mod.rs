//! Exported BERT-family graphs against candle's forward pass over the same weights: tiny random models
//! of every family, and the starter encoder.
#![allow(clippy::unwrap_used, reason = "what fails in a test's helper fails the test")]

use candle_core::Device;
use nunatak::export::Precision;
use nunatak::export::bert::export_cross_encoder;
use nunatak::export::encoder::export_encoder;
use nunatak::train::bert::Bert;
use nunatak::train::texts::PackedTexts;
use serde_json::{Value, json};

use tiny::{Batch, Checkpoint, FAMILIES, Family, HIDDEN, config, root};

mod starter;
pub(crate) mod tiny;

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Smallest cosine of corresponding unit vectors.
fn least_cosine(a: &[f32], b: &[f32]) -> f32 {
    let cosine = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    a.chunks(HIDDEN).zip(b.chunks(HIDDEN)).map(cosine).fold(f32::INFINITY, f32::min)
}

#[test]
fn encoders_equal_candle_in_every_family_pooling_and_naming() {
    let batch = Batch::random(&[16, 3, 9, 1], 7, false);
    for family in FAMILIES {
        for (cls, root) in [(false, root(family)), (true, "")] {
            let checkpoint = Checkpoint::new(family, root, 1, 11);
            checkpoint.pool(cls);
            let expected = checkpoint.embeddings(root, &batch, cls);
            for precision in [Precision::Fp32, Precision::Fp16, Precision::Int8, Precision::W8A8] {
                let out = tempfile::tempdir().unwrap();
                export_encoder(checkpoint.dir.path(), out.path(), precision).unwrap();
                let found = batch.run(out.path(), "sentence_embedding");
                let difference = largest_difference(&expected, &found);
                let cosine = least_cosine(&expected, &found);
                let case = format!("{family:?} cls={cls} {precision}: {difference} {cosine}");
                println!("{case}");
                match precision {
                    Precision::Fp32 => assert!(difference < 1e-4, "{case}"),
                    Precision::Fp16 => assert!(difference < 5e-3, "{case}"),
                    Precision::Int8 | Precision::W8A8 => assert!(cosine > 0.99, "{case}"),
                }
            }
        }
    }
}

#[test]
fn cross_encoders_equal_candle_in_every_family() {
    let batch = Batch::random(&[16, 4, 10], 8, true);
    for family in FAMILIES {
        let checkpoint = Checkpoint::new(family, root(family), 1, 13);
        let expected = checkpoint.scores(root(family), &batch);
        let tolerances =
            [(Precision::Fp32, 1e-4), (Precision::Fp16, 2e-2), (Precision::Int8, 0.2), (Precision::W8A8, 0.2)];
        for (precision, tolerance) in tolerances {
            let out = tempfile::tempdir().unwrap();
            export_cross_encoder(checkpoint.dir.path(), out.path(), precision).unwrap();
            let found = batch.run(out.path(), "score");
            let difference = largest_difference(&expected, &found);
            println!("{family:?} {precision}: {expected:?} {found:?} {difference}");
            assert!(difference < tolerance, "{family:?} {precision}: {expected:?} {found:?}");
        }
    }
}

#[test]
fn the_trainable_cross_encoder_equals_the_exported_graph() {
    let batch = Batch::random(&[16, 4, 10], 8, true);
    for family in FAMILIES {
        let checkpoint = Checkpoint::new(family, root(family), 1, 13);
        let out = tempfile::tempdir().unwrap();
        export_cross_encoder(checkpoint.dir.path(), out.path(), Precision::Fp32).unwrap();
        let expected = batch.run(out.path(), "score");
        let bert = Bert::load(checkpoint.dir.path(), None, 0, &Device::Cpu).unwrap();
        let found = bert.scores(&PackedTexts::new(&batch.cuts()), true).unwrap().to_vec1::<f32>().unwrap();
        let difference = largest_difference(&expected, &found);
        assert!(difference < 1e-4, "{family:?}: {expected:?} {found:?}");

        // What it writes is a checkpoint again, which gives the same graph.
        let (saved, again) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        bert.save(saved.path(), 12).unwrap();
        export_cross_encoder(saved.path(), again.path(), Precision::Fp32).unwrap();
        assert_eq!(batch.run(again.path(), "score"), expected);
        let description = std::fs::read_to_string(again.path().join("nunatak.json")).unwrap();
        assert!(description.contains("\"max_tokens\": 12"), "{description}");
    }
}

#[test]
fn an_encoder_s_checkpoint_gets_a_head_and_can_lose_layers() {
    let checkpoint = Checkpoint::new(Family::Bert, "bert.", 2, 19);
    let batch = Batch::random(&[9, 5], 3, true);
    let scores = |layers, seed| {
        let bert = Bert::load(checkpoint.dir.path(), layers, seed, &Device::Cpu).unwrap();
        bert.scores(&PackedTexts::new(&batch.cuts()), false).unwrap().to_vec1::<f32>().unwrap()
    };
    // Two labels are no score, so that head is drawn anew, from the seed.
    assert_eq!(scores(None, 1), scores(None, 1));
    assert_ne!(scores(None, 1), scores(None, 2));
    assert_ne!(scores(Some(1), 1), scores(None, 1));
}

#[test]
fn padding_does_not_change_a_text() {
    let batch = Batch::random(&[16, 2, 9], 9, false);
    for family in FAMILIES {
        let checkpoint = Checkpoint::new(family, "", 1, 17);
        // Where 8-bit activations share one scale a batch, a neighbour moves a text a little; a scale a token does not.
        let tolerances =
            [(Precision::Fp32, 1e-5), (Precision::Fp16, 5e-3), (Precision::Int8, 0.1), (Precision::W8A8, 1e-5)];
        for (precision, tolerance) in tolerances {
            let out = tempfile::tempdir().unwrap();
            export_encoder(checkpoint.dir.path(), out.path(), precision).unwrap();
            let together = batch.run(out.path(), "sentence_embedding");
            for (row, together) in together.chunks(HIDDEN).enumerate() {
                let alone = batch.row(row).run(out.path(), "sentence_embedding");
                let difference = largest_difference(&alone, together);
                println!("{family:?} {precision} {difference}");
                assert!(difference < tolerance, "{family:?} {precision} row {row}: {difference}");
            }
        }
    }
}

#[test]
fn what_has_no_graph_is_refused_by_name() {
    let says = |checkpoint: &Checkpoint, words: &str| {
        let out = tempfile::tempdir().unwrap();
        let message = export_encoder(checkpoint.dir.path(), out.path(), Precision::Fp32).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
        assert!(!out.path().join("nunatak.json").exists());
    };
    let edit = |checkpoint: &Checkpoint, key: &str, value: Value| {
        let mut config = config(checkpoint.family);
        config[key] = value;
        std::fs::write(checkpoint.dir.path().join("config.json"), config.to_string()).unwrap();
    };
    let checkpoint = Checkpoint::new(Family::Bert, "", 2, 19);
    edit(&checkpoint, "model_type", json!("albert"));
    says(&checkpoint, "`albert` is neither of the BERT family");
    edit(&checkpoint, "hidden_act", json!("silu"));
    says(&checkpoint, "`silu`");
    edit(&checkpoint, "hidden_size", json!(64));
    says(&checkpoint, "[60, 32]");
    edit(&checkpoint, "num_hidden_layers", json!(3));
    says(&checkpoint, "encoder.layer.2.attention.self.query.weight");
    edit(&checkpoint, "hidden_size", json!("wide"));
    says(&checkpoint, "config.json");
    edit(&checkpoint, "model_type", json!("bert"));
    let modules = json!([{"type": "sentence_transformers.models.WordWeights"}]).to_string();
    std::fs::write(checkpoint.dir.path().join("modules.json"), modules).unwrap();
    says(&checkpoint, "models.WordWeights");

    let out = tempfile::tempdir().unwrap();
    let two = Checkpoint::new(Family::Bert, "bert.", 2, 19);
    let message = export_cross_encoder(two.dir.path(), out.path(), Precision::Fp32).unwrap_err().to_string();
    assert!(message.contains("2 labels"), "{message}");
}
