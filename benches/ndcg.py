"""nDCG over all that a run lists, by trec_eval's formula (gain / log2(rank + 1)), from a run and the judgements.

    python3 benches/ndcg.py vaswani/qrels.tsv runs/vaswani/run.trec

Prints nDCG@10 (as a check: `nunatak eval` prints it, too) and nDCG over the whole list.
"""

import collections
import math
import sys


def read(path, document, value):
    of = collections.defaultdict(dict)
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            fields = line.split()
            of[fields[0]][fields[document]] = value(fields)
    return of


def ndcg(gains, ranks, k):
    found = sorted(ranks, key=ranks.get)[:k]
    ideal = sorted(gains.values(), reverse=True)[:k]
    dcg = sum(gains.get(name, 0) / math.log2(n + 2) for n, name in enumerate(found))
    return dcg / sum(gain / math.log2(n + 2) for n, gain in enumerate(ideal))


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    judged = read(sys.argv[1], 1, lambda fields: int(fields[-1]))
    run = read(sys.argv[2], 2, lambda fields: int(fields[3]))
    for k in (10, None):
        scores = [ndcg(gains, run[question], k) for question, gains in judged.items()]
        print(f"nDCG@{k or 'all'} {sum(scores) / len(scores):.4f}, n {len(scores)}")


if __name__ == "__main__":
    main()
