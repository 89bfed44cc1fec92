"""Training questions to fit the confidence on: of NQ with their passage in the corpus, of SQuAD that the re-ranker was not trained on, and of NQ
without a passage there, so that "the corpus does not hold it" is among what is learned.

    zstd -d train/nq.jsonl.zst train/squad.jsonl.zst train/nq-questions.jsonl.zst
    python3 benches/calibration_set.py train/nq.jsonl 200 train/squad.jsonl 200 train/nq-questions.jsonl 100 > calibration.jsonl
    nunatak eval --index wiki --questions calibration.jsonl --out runs/calibration
    nunatak eval calibrate --run runs/calibration --out models/calibration.json --overwrite

The re-ranker that comes with nunatak has seen NQ's questions with a passage, and every tenth line of SQuAD's (`NR % 10 == 0`).
"""

import json
import random
import sys


def read(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def main():
    if len(sys.argv) != 7:
        sys.exit(__doc__)
    nq, squad, alone = (read(path) for path in sys.argv[1::2])
    with_passage = {q["question"] for q in nq}
    pools = (
        nq,
        [q for line, q in enumerate(squad, 1) if line % 10],
        [q for q in alone if q["question"] not in with_passage],
    )
    random.seed(0)
    for pool, count in zip(pools, map(int, sys.argv[2::2])):
        for question in random.sample(pool, count):
            print(json.dumps(question))


if __name__ == "__main__":
    main()
