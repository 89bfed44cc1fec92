"""What the first stage's score is worth beside the re-ranker's: MRR@10 and recall@1 over the re-ranker's 50 for many weights.

    python3 benches/rerank_prior.py NUNATAK INDEX DENSE_WEIGHT questions.jsonl > table.txt

Training questions only (JSONL with `question` and `positive_ids`). Every question is searched once, with `--rerank-prior 0`; the weights
are then tried on what `--explain` says each side gave. About 3 s a question on two slow cores.
"""

import json
import subprocess
import sys

WEIGHTS = (0, 4, 8, 10, 12, 14, 15, 16, 17, 18, 20, 22, 25, 30, 40, 1000)


def search(program, index, dense_weight, question):
    """(re-ranker's score, first stage's score, document) of the best 50."""
    words = [program, "search", question, "--index", index, "--dense-weight", dense_weight]
    more = ["--rerank-prior", "0", "-k", "50", "--explain", "--json", "-q"]
    output = subprocess.run(words + more, capture_output=True, text=True, check=True).stdout
    for hit in map(json.loads, output.splitlines()):
        parts = hit["parts"]
        reranker = parts["reranker"]["score"] if parts["reranker"] else 0.0
        yield reranker, parts["first_stage"]["score"], hit["passage_id"].split("#")[0]


def first_right(hits, weight, right):
    ranked = sorted(hits, key=lambda hit: -(hit[0] + weight * hit[1]))
    return next((rank for rank, hit in enumerate(ranked, 1) if hit[2] in right), None)


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    program, index, dense_weight, path = sys.argv[1:]
    with open(path, encoding="utf-8") as lines:
        questions = [json.loads(line) for line in lines]
    found = [(list(search(program, index, dense_weight, q["question"])), set(q["positive_ids"])) for q in questions]
    print(f"weight of the first stage's score, MRR@10, recall@1; --dense-weight {dense_weight}, n {len(found)}")
    for weight in WEIGHTS:
        ranks = [first_right(hits, weight, right) for hits, right in found]
        mrr = sum(1 / rank for rank in ranks if rank and rank <= 10) / len(ranks)
        first = sum(rank == 1 for rank in ranks) / len(ranks)
        print(f"{weight} {100 * mrr:.1f} {100 * first:.1f}")


if __name__ == "__main__":
    main()
