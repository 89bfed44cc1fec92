"""Questions without their passages, as tasks: what closed-book answering is trained and measured on.

    python3 benches/closed_book.py NAME SPLIT questions.jsonl [more.jsonl ...] > tasks.jsonl

NAME is the task's name, SPLIT `train` or `test`. The first answer is the target, and all of them are `answers`. A question
that comes twice (its words alone compared) is written once.
"""

import json
import sys


def main(name, split, paths):
    seen = set()
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                words = " ".join(record["question"].lower().rstrip("?").split())
                answers = [answer for answer in record["answers"] if answer.strip()]
                if words in seen or not answers:
                    continue
                seen.add(words)
                print(json.dumps({
                    "input": f"Question: {record['question'].rstrip('?')}?\nAnswer:",
                    "target": answers[0],
                    "answers": answers,
                    "task": name,
                    "cluster": "closed-book",
                    "split": split,
                }, ensure_ascii=False))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
