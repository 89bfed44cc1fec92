//! What decoding may rely on: the cache contract of an exported graph.

use nunatak::export::Precision;
use nunatak::export::llama::export_lm;

use super::assert_close;
use super::graph::Graphs;
use super::tiny::{Family, VOCAB, prompt};

const CAPACITY: usize = 32;
/// Different kernels serve one row and many; sums come in another order.
const TOLERANCE: f32 = 1e-5;

fn graphs(family: Family, precision: Precision) -> Graphs {
    let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    family.write(&family.weights(3), source.path());
    export_lm(source.path(), out.path(), precision).unwrap();
    Graphs::open(out.path())
}

/// Token by token into a buffer longer than needed, against everything at once.
#[test]
fn decoding_equals_recomputing() {
    for (family, precision, tolerance) in [
        (Family::Llama, Precision::Fp32, TOLERANCE),
        (Family::Mistral, Precision::Fp32, TOLERANCE),
        (Family::Qwen3, Precision::Fp32, TOLERANCE),
        (Family::Llama, Precision::Fp16, 1e-2),
    ] {
        let mut graphs = graphs(family, precision);
        let ids = prompt(20, 1);
        let empty = graphs.cache(1, 0);
        let whole = graphs.run(&[&ids], &[20], &empty);
        let buffer = graphs.cache(1, CAPACITY);
        let mut step = graphs.run(&[&ids[..12]], &[12], &buffer);
        for at in 12..20 {
            assert_eq!(step.cache.capacity, CAPACITY);
            step = graphs.run(&[&ids[at..=at]], &[at + 1], &step.cache);
            let expected = &whole.logits.data[at * VOCAB..(at + 1) * VOCAB];
            assert_close(&step.logits.data, expected, tolerance, &format!("{family:?} in {precision} at {at}"));
        }
    }
}

#[test]
fn a_prompt_in_two_pieces_equals_one() {
    for family in [Family::Llama, Family::Mistral] {
        let mut graphs = graphs(family, Precision::Fp32);
        let ids = prompt(20, 2);
        let empty = graphs.cache(1, 0);
        let whole = graphs.run(&[&ids], &[20], &empty);
        for buffer in [empty, graphs.cache(1, CAPACITY)] {
            let first = graphs.run(&[&ids[..7]], &[7], &buffer);
            let second = graphs.run(&[&ids[7..]], &[20], &first.cache);
            assert_close(&second.logits.data, &whole.logits.data[7 * VOCAB..], TOLERANCE, &format!("{family:?}"));
        }
    }
}

/// Padded on the right, then one more token for each behind its own end.
#[test]
fn prompts_of_different_lengths_share_a_batch() {
    let mut graphs = graphs(Family::Llama, Precision::Fp32);
    let (long, short) = (prompt(17, 3), prompt(9, 4));
    let empty = graphs.cache(1, 0);
    let alone = [graphs.run(&[&long], &[17], &empty), graphs.run(&[&short], &[9], &empty)];
    let mut padded = short[..8].to_vec();
    padded.resize(16, 0);
    let buffer = graphs.cache(2, CAPACITY);
    let both = graphs.run_for(&[&long[..16], &padded], &[16, 8], &buffer, &[15, 16 + 7]);
    assert_eq!(both.logits.shape, [2, VOCAB]);
    assert_close(&both.logits.data[..VOCAB], &alone[0].logits.data[15 * VOCAB..16 * VOCAB], TOLERANCE, "the long");
    assert_close(&both.logits.data[VOCAB..], &alone[1].logits.data[7 * VOCAB..8 * VOCAB], TOLERANCE, "the short");
    let next = graphs.run(&[&long[16..], &short[8..]], &[17, 9], &both.cache);
    assert_close(&next.logits.data[..VOCAB], &alone[0].logits.data[16 * VOCAB..], TOLERANCE, "the long, decoding");
    assert_close(&next.logits.data[VOCAB..], &alone[1].logits.data[8 * VOCAB..], TOLERANCE, "the short, decoding");
}

#[test]
fn only_the_asked_rows_get_logits() {
    let mut graphs = graphs(Family::Qwen2, Precision::Fp32);
    let ids = prompt(10, 6);
    let empty = graphs.cache(1, 0);
    let all = graphs.run(&[&ids], &[10], &empty);
    let some = graphs.run_for(&[&ids], &[10], &empty, &[9, 2]);
    assert_close(&some.logits.data[..VOCAB], &all.logits.data[9 * VOCAB..], TOLERANCE, "the last");
    assert_close(&some.logits.data[VOCAB..], &all.logits.data[2 * VOCAB..3 * VOCAB], TOLERANCE, "the third");
    let none = graphs.run_for(&[&ids], &[10], &empty, &[]);
    assert_eq!((none.logits.shape.as_slice(), none.states.data.len()), (&[0, VOCAB][..], all.states.data.len()));
}
