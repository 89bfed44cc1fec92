"""Questions a second, memory and recall of bm25s beside `benches/retrieve.rs`, on the same corpus and questions, in turns.

    python3 -m venv bm25-venv
    bm25-venv/bin/pip install bm25s numba PyStemmer zstandard
    nunatak index build --index words --corpus corpus.jsonl.zst --no-dense --passage-words 0
    bm25-venv/bin/python benches/peers/bm25.py --corpus corpus.jsonl.zst --questions nq-dev.jsonl \
        --against "cargo bench --bench retrieve -- words nq-dev.jsonl"

bm25s (numba back end, one thread) gets `title. text`, its English stop words, the Snowball stemmer of PyStemmer, and our k1 and b
(1.2 and 0.75); its tokenisation of the questions is timed, as ours is. `--corpus` may be given several times, and `--times`
repeats all of it, to see how both grow. The first round is thrown away. Standard output gets one line of JSON a
system.
"""

import argparse
import io
import json
import shlex
import statistics
import subprocess
import time
from pathlib import Path


def records(path):
    """The records of a corpus of JSON lines."""
    if path.suffix == ".zst":
        import zstandard

        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(path.open("rb")), encoding="utf8")
    else:
        lines = path.open(encoding="utf8")
    with lines:
        yield from map(json.loads, lines)


def memory():
    """Megabytes of the process's own memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def main():
    """Read the options, index, take turns, report."""
    parser = argparse.ArgumentParser(description="questions a second of bm25s")
    parser.add_argument("--corpus", type=Path, action="append", required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--times", type=int, default=1, help="how often the corpus is taken")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that are kept")
    parser.add_argument("--against", help="command to compare with")
    args = parser.parse_args()

    import bm25s
    import Stemmer

    keys, texts = [], []
    for _ in range(args.times):
        for path in args.corpus:
            for record in records(path):
                keys.append(record["id"])
                title, text = record.get("title"), record["text"]
                texts.append(f"{title}. {text}" if title else text)
    asked = [json.loads(line) for line in args.questions.read_text(encoding="utf8").splitlines()]
    before = memory()
    stemmer = Stemmer.Stemmer("english")
    begin = time.perf_counter()
    tokens = bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False)
    del texts
    engine = bm25s.BM25(k1=1.2, b=0.75, backend="numba")
    engine.index(tokens, show_progress=False)
    del tokens
    build = time.perf_counter() - begin
    engine.activate_numba_scorer()

    def round_():
        begin = time.perf_counter()
        words = bm25s.tokenize([a["question"] for a in asked], stopwords="en", stemmer=stemmer, show_progress=False)
        found, _ = engine.retrieve(words, k=100, n_threads=1, show_progress=False)
        return time.perf_counter() - begin, found

    seconds, others = [], []
    for number in range(args.repeats + 1):
        elapsed, found = round_()
        if number:
            seconds.append(elapsed)
        if args.against:
            result = subprocess.run(shlex.split(args.against), stdout=subprocess.PIPE, text=True, check=True)
            others = [line for line in result.stdout.splitlines() if line.startswith("{")]
    ranked = [[keys[row] for row in rows] for rows in found]
    recalls = [
        sum(any(id in ids[:k] for id in a.get("positive_ids", [])) for ids, a in zip(ranked, asked)) / len(asked)
        for k in (1, 5, 20, 100)
    ]
    print(json.dumps({
        "system": f"bm25s {bm25s.__version__} numba", "passages": len(keys), "questions": len(asked),
        "questions_s": len(asked) / statistics.median(seconds), "rounds": seconds, "build_s": build,
        "anon_mb": memory(), "of_these_before_mb": before, "recall_1_5_20_100": recalls,
    }))
    for line in others:
        print(line)


if __name__ == "__main__":
    main()
