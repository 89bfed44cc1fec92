"""Dense search of hnswlib, faiss and usearch beside `benches/retrieve.rs`, on the same vectors and questions, in one run.

    python3 -m venv vectors-venv
    vectors-venv/bin/pip install numpy hnswlib faiss-cpu usearch
    vectors-venv/bin/python benches/peers/vectors.py --vectors DUMP \
        --against "cargo bench --bench retrieve -- wiki nq-dev.jsonl --dump DUMP"

The command writes `passages.npy` and `questions.npy` to DUMP, and its own measurements to standard output. The peers then build
over the same vectors (M 16, ef_construction 200, two threads; ours did at `index build`, which says its seconds) and are asked
for the ten nearest by one thread, at several widths of the beam; recall is against comparing with all, on the first 300
questions. The first round is thrown away. One line of JSON a measurement; memory is what the process has of its own
beyond the vectors as numpy holds them, those of the index included.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

WIDTHS = (10, 16, 24, 32, 48, 64, 96, 128, 256)


def memory():
    """Megabytes of the process's own memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def hnswlib_(passages, threads):
    import hnswlib

    index = hnswlib.Index(space="ip", dim=passages.shape[1])
    index.init_index(max_elements=len(passages), M=16, ef_construction=200)
    index.add_items(passages, num_threads=threads)

    def search(questions, width):
        index.set_ef(width)
        return index.knn_query(questions, k=10, num_threads=1)[0]

    return search


def faiss_(passages, threads):
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexHNSWFlat(passages.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 200
    index.add(passages)
    faiss.omp_set_num_threads(1)

    def search(questions, width):
        index.hnsw.efSearch = width
        return index.search(questions, 10)[1]

    return search


def usearch_(passages, threads):
    import numpy
    from usearch.index import Index

    index = Index(ndim=passages.shape[1], metric="ip", dtype="f32", connectivity=16, expansion_add=200)
    index.add(numpy.arange(len(passages)), passages, threads=threads)

    def search(questions, width):
        index.expansion_search = width
        return index.search(questions, 10, threads=1).keys

    return search


def main():
    """Read the options, run ours, then every peer in a process of its own."""
    parser = argparse.ArgumentParser(description="dense search of the peers")
    parser.add_argument("--vectors", type=Path, required=True, help="folder with passages.npy and questions.npy")
    parser.add_argument("--threads", type=int, default=2, help="threads that build")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that are kept")
    parser.add_argument("--only", choices=["hnswlib", "faiss", "usearch"], help="this peer, in this process")
    parser.add_argument("--against", help="command to compare with, which writes the vectors")
    args = parser.parse_args()
    if args.against:
        print(subprocess.run(shlex.split(args.against), stdout=subprocess.PIPE, text=True, check=True).stdout, end="")
    if not args.only:
        for peer in ("hnswlib", "faiss", "usearch"):
            command = [sys.executable, __file__, "--vectors", args.vectors, "--threads", str(args.threads), "--only", peer]
            print(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout, end="", flush=True)
        return

    import numpy

    passages = numpy.load(args.vectors / "passages.npy")
    questions = numpy.load(args.vectors / "questions.npy")
    exact = [set(numpy.argsort(-(passages @ q))[:10].tolist()) for q in questions[:300]]
    before = memory()
    begin = time.perf_counter()
    search = {"hnswlib": hnswlib_, "faiss": faiss_, "usearch": usearch_}[args.only](passages, args.threads)
    build = time.perf_counter() - begin
    own = memory() - before
    for width in WIDTHS:
        seconds = []
        for _ in range(args.repeats + 1):
            begin = time.perf_counter()
            found = search(questions, width)
            seconds.append(time.perf_counter() - begin)
        same = sum(len(e & set(map(int, f))) for e, f in zip(exact, found))
        print(json.dumps({
            "system": args.only, "passages": len(passages), "questions": len(questions), "ef": width,
            "recall_10": same / (10 * len(exact)), "questions_s": len(questions) / statistics.median(seconds[1:]),
            "rounds": seconds[1:], "build_s": build, "own_mb": own,
        }))


if __name__ == "__main__":
    main()
