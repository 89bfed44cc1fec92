"""Pairs a second of sentence-transformers' CrossEncoder beside `benches/rerank.rs`, on the same weights and texts, in turns.

    python3 -m venv st-venv
    st-venv/bin/pip install sentence-transformers
    nunatak search --index wiki --json --rerank none -k 100 ...      # or any other way to get passages
    st-venv/bin/python benches/peers/rerank.py --weights runs/reranker/weights --pairs pairs.jsonl \
        --against "cargo bench --bench rerank -- runs/reranker/reranker pairs.jsonl"

`--make INDEX QUESTIONS` first writes `--pairs`: the `--depth` passages that `nunatak search` finds for each of the first
`--questions` questions, a JSON object a line (`question`, `passages`).

`--weights` is the folder `weights` of `nunatak train reranker`: a BERT with a score head in safetensors, which both read
(ours from the int8 graph made of it). Both get the whole list of a question in one call, as a pipeline does; the peer with
its own batching (32 pairs, sorted by length) and the same longest pair. The first round is thrown away. Standard output
gets one line of JSON a system: system, pairs_s and p50_ms (medians over rounds), rounds.

What this does not show: the quality of the order, or a GPU.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import time
from pathlib import Path


def make(args):
    """Write the pairs file from what `nunatak search` finds."""
    index, questions = args.make
    with open(questions, encoding="utf-8") as lines, args.pairs.open("w", encoding="utf-8") as out:
        for _, line in zip(range(args.questions), lines):
            question = json.loads(line)["question"]
            command = [args.nunatak, "search", question, "--index", index, "--json", "--rerank", "none", "-k", str(args.depth)]
            found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            hits = [json.loads(hit) for hit in found.splitlines()]
            passages = [f"{h['title']}. {h['text']}" if h["title"] else h["text"] for h in hits]
            out.write(json.dumps({"question": question, "passages": passages}) + "\n")


def measure(model, asked):
    """One round: pairs per second, and the median milliseconds of a question."""
    milliseconds = []
    for one in asked:
        start = time.perf_counter()
        model.predict([(one["question"], passage) for passage in one["passages"]], show_progress_bar=False)
        milliseconds.append((time.perf_counter() - start) * 1000)
    pairs = sum(len(one["passages"]) for one in asked)
    return {"pairs_s": pairs / sum(milliseconds) * 1000, "p50_ms": statistics.median(milliseconds)}


def other(command):
    """One run of the program that is compared."""
    result = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, text=True, check=True)
    line = json.loads(result.stdout.strip().splitlines()[-1])
    return {key: line[key] for key in ("pairs_s", "p50_ms")}


def report(system, rounds):
    """Print the medians and every round."""
    medians = {key: statistics.median(r[key] for r in rounds) for key in ("pairs_s", "p50_ms")}
    print(json.dumps({"system": system, **medians, "rounds": rounds}))


def main():
    """Read the options, take turns, report."""
    parser = argparse.ArgumentParser(description="pairs a second of CrossEncoder")
    parser.add_argument("--weights", required=True, help="folder with a BERT cross-encoder in safetensors")
    parser.add_argument("--pairs", type=Path, required=True, help="JSONL: question, passages")
    parser.add_argument("--make", nargs=2, metavar=("INDEX", "QUESTIONS"), help="write --pairs first")
    parser.add_argument("--nunatak", default="nunatak", help="the program, for --make")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that are kept")
    parser.add_argument("--against", help="command to compare with")
    args = parser.parse_args()
    if args.make:
        make(args)

    os.environ["HF_HUB_OFFLINE"] = "1"
    import sentence_transformers
    import torch

    torch.set_num_threads(args.threads)
    kwargs = {"torch_dtype": getattr(torch, args.dtype)}
    model = sentence_transformers.CrossEncoder(
        args.weights, max_length=args.max_tokens, device="cpu", model_kwargs=kwargs
    )
    asked = [json.loads(line) for line in args.pairs.read_text(encoding="utf-8").splitlines()]
    ours, theirs = [], []
    for _ in range(args.repeats + 1):
        ours.append(measure(model, asked))
        if args.against:
            theirs.append(other(args.against))
    report(f"CrossEncoder {args.dtype} (sentence-transformers {sentence_transformers.__version__})", ours[1:])
    if args.against:
        report(args.against, theirs[1:])


if __name__ == "__main__":
    main()
