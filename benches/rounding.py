"""What rounding does to a language model: exports of it against the one in 32-bit floats, on the bundled passages.

    nunatak models export SmolLM2-135M-Instruct@fp32 fp32      (and @int8, @w8a8)
    python3 benches/rounding.py fp32 int8 w8a8

Needs numpy, onnxruntime and tokenizers. For every export: the mean and median Kullback-Leibler divergence of the next token's distribution from
that of the first, in nats, and how often the likeliest token is the same. It does not show what that costs in answers.
"""

import json
import os
import sys
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime loads: its wheels report home otherwise

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

DEMO = Path(__file__).resolve().parents[1] / "src/cli/demo/passages.jsonl"
PASSAGES = 16


def texts(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    passages = [json.loads(line) for line in DEMO.read_text(encoding="utf-8").splitlines()[:PASSAGES]]
    return [tokenizer.encode(f"{p['title']}. {p['text']}\nQuestion: What is it?\nAnswer:").ids for p in passages]


def log_probabilities(folder, sequences):
    """Of every token of the second half of each text, `[tokens, vocabulary]`."""
    embed = onnxruntime.InferenceSession(folder / "embed.onnx")
    model = onnxruntime.InferenceSession(folder / "model.onnx")
    past = {i.name: i for i in model.get_inputs() if i.name.startswith("past_key_values")}
    rows = []
    for ids in sequences:
        feed = {
            "inputs_embeds": embed.run(None, {"input_ids": np.array([ids], np.int64)})[0],
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "logit_rows": np.arange(len(ids) // 2, len(ids), dtype=np.int64),
        }
        for name, tensor in past.items():
            kind = np.float16 if "float16" in tensor.type else np.float32
            feed[name] = np.zeros((1, tensor.shape[1], 0, tensor.shape[3]), kind)
        logits = model.run(["logits"], feed)[0].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        rows.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    return np.concatenate(rows)


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    exact, *others = map(Path, sys.argv[1:])
    sequences = texts(exact)
    reference = log_probabilities(exact, sequences)
    for other in others:
        found = log_probabilities(other, sequences)
        divergence = (np.exp(reference) * (reference - found)).sum(axis=1)
        same = (reference.argmax(axis=1) == found.argmax(axis=1)).mean()
        print(
            f"{other.name}: divergence {divergence.mean():.4f} on average, {np.median(divergence):.4f} in the median; "
            f"likeliest token the same {same:.3f}; n {len(divergence)}"
        )


if __name__ == "__main__":
    main()
