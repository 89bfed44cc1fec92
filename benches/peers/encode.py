"""Encoding speed of an exported encoder against sentence-transformers, on the same texts in the same run.

    nunatak models export all-MiniLM-L6-v2@int8 OUT       (gives --graph)
    python benches/peers/encode.py --graph OUT --model MINILM_FOLDER --corpus corpus.jsonl.zst

Needs torch, sentence-transformers, onnxruntime, tokenizers, and zstandard for .zst corpora. It writes nothing but
stdout: a line of JSON a system and round, then a table.

Every system encodes the same texts, from strings to unit vectors, tokenisation included. sentence-transformers runs
as it comes (batches of 32 sorted by length) in float32 and in bfloat16. The graph runs through ONNX Runtime's Python
package, in batches of similar length under a token budget, as the nunatak binary does; what the binary adds or saves
around the graph is not shown here. Rounds are interleaved, so that a busy machine hurts all systems alike; the
ratios compare processor seconds, which other processes distort least, and the best round's wall time is beside them.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime loads: its wheels report home otherwise

import argparse
import io
import json
import random
import time
from pathlib import Path

import numpy as np


def passages(path, count, seed):
    """A random sample of the corpus, each as `title. text`."""
    if path.suffix == ".zst":
        import zstandard

        stream = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(path.open("rb")), encoding="utf8")
    else:
        stream = path.open(encoding="utf8")
    lines = list(stream)
    rows = map(json.loads, random.Random(seed).sample(lines, min(count, len(lines))))
    return [f"{p['title']}. {p['text']}" if p.get("title") else p["text"] for p in rows]


class Graph:
    """An exported encoder: batches sorted by length, `budget` tokens of padded input at most."""

    def __init__(self, folder, threads, budget):
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        self.description = json.loads((folder / "nunatak.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.description["max_tokens"])
        self.budget = budget
        self.name = f"nunatak graph {self.description['precision']}"

    def encode(self, texts):
        rows = [e.ids for e in self.tokenizer.encode_batch(texts)]
        out = np.empty((len(rows), self.description["hidden"]), np.float32)
        batch = []
        for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
            if batch and (len(batch) + 1) * len(rows[i]) > self.budget:
                out[batch] = self.run([rows[j] for j in batch])
                batch = []
            batch.append(i)
        out[batch] = self.run([rows[j] for j in batch])
        return out

    def run(self, rows):
        width = max(map(len, rows))
        ids, mask = np.zeros((2, len(rows), width), np.int64)
        for r, row in enumerate(rows):
            ids[r, : len(row)] = row
            mask[r, : len(row)] = 1
        return self.session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})[0]


class SentenceTransformers:
    """The library as it comes, but for the number type."""

    def __init__(self, folder, dtype, max_tokens):
        import torch
        from sentence_transformers import SentenceTransformer

        kwargs = {"dtype": getattr(torch, dtype)}
        self.model = SentenceTransformer(str(folder), device="cpu", model_kwargs=kwargs)
        self.model.max_seq_length = max_tokens
        self.name = f"sentence-transformers {dtype}"

    def encode(self, texts):
        return np.asarray(self.model.encode(texts, normalize_embeddings=True, show_progress_bar=False), np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", type=Path, required=True, action="append", help="exported folder; may be repeated")
    parser.add_argument("--model", type=Path, required=True, help="the same model as sentence-transformers reads it")
    parser.add_argument("--corpus", type=Path, required=True, help="JSONL with title and text, .zst or plain")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=int, default=2048, help="tokens in a batch of the graph, padding included")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    texts = passages(args.corpus, args.texts, args.seed)
    graphs = [Graph(folder, args.threads, args.budget) for folder in args.graph]
    max_tokens = graphs[0].description["max_tokens"]
    tokens = sum(len(e.ids) for e in graphs[0].tokenizer.encode_batch(texts))
    peers = [SentenceTransformers(args.model, dtype, max_tokens) for dtype in ("float32", "bfloat16")]
    systems = peers + graphs
    for system in systems:
        system.encode(texts[:64])  # first runs allocate and pack

    wall, cpu, vectors = {}, {}, {}
    for round_ in range(args.rounds):
        for system in systems:
            start, start_cpu = time.perf_counter(), time.process_time()
            vectors[system.name] = system.encode(texts)
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
            wall.setdefault(system.name, []).append(seconds)
            cpu.setdefault(system.name, []).append(cpu_seconds)
            print(json.dumps({"system": system.name, "round": round_, "wall_s": seconds, "cpu_s": cpu_seconds}))

    print(f"\n{len(texts)} texts, {tokens} tokens, {args.threads} threads, best of {args.rounds} rounds")
    header = ("system", "passages/s", "tokens/s", "cpu s", "x float32", "x bfloat16", "cosine", "least")
    print("{:<32} {:>10} {:>9} {:>7} {:>10} {:>10} {:>8} {:>7}".format(*header))
    exact = vectors[peers[0].name]
    for system in systems:
        best, work = min(wall[system.name]), min(cpu[system.name])
        cosine = (vectors[system.name] * exact).sum(1)
        ratios = [min(cpu[peer.name]) / work for peer in peers]
        print(
            f"{system.name:<32} {len(texts) / best:>10.1f} {tokens / best:>9.0f} {work:>7.2f} {ratios[0]:>10.2f} "
            f"{ratios[1]:>10.2f} {cosine.mean():>8.5f} {cosine.min():>7.4f}"
        )


if __name__ == "__main__":
    main()
