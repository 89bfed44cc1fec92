"""Prefill and decode speed of llama.cpp, through llama-cpp-python, on the prompt that `benches/lm.rs` uses.

    python3 -m venv llama-venv
    llama-venv/bin/pip install --no-binary llama-cpp-python llama-cpp-python numpy
    llama-venv/bin/python benches/peers/llama.py --model SmolLM2-135M-Instruct.Q4_1.gguf

`--no-binary` builds llama.cpp on this machine with the instructions that its processor has (GGML_NATIVE is on by
default); a prebuilt wheel may lack them and would be compared unfairly.

The prompt is the first `--tokens` tokens of the passages in `--text`, each as `title. text`, joined by newlines,
without special tokens. After it `--decode` tokens are generated, always the likeliest one. The first round is thrown
away, the median of the others is reported. Standard output gets one line of JSON a system:

    system, prefill_tok_s, decode_tok_s, n (prompt tokens), decoded, repeats, rounds (all that were kept)

`--against COMMAND` runs another program after each round, so that a busy machine hurts both alike. Its last line on
standard output has to be JSON with prefill_tok_s and decode_tok_s.

What this does not show: the quality of the answers, or many prompts at once.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

import llama_cpp
import numpy as np

DEMO = Path(__file__).resolve().parents[2] / "src/cli/demo/passages.jsonl"


def prompt(llm, path, length):
    """The first `length` tokens of the passages in a JSONL file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    passages = [json.loads(line) for line in lines if line.strip()]
    text = "\n".join(f"{p['title']}. {p['text']}" for p in passages)
    tokens = llm.tokenize(text.encode(), add_bos=False, special=False)
    if len(tokens) < length:
        sys.exit(f"{path} has only {len(tokens)} tokens, {length} are wanted")
    return tokens[:length]


def likeliest(llm):
    """The token with the highest logit after the last evaluation."""
    logits = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    return int(np.ctypeslib.as_array(logits, shape=(llm.n_vocab(),)).argmax())


def measure(llm, tokens, decode):
    """One round: tokens per second of prefill and of decoding."""
    llm.reset()
    start = time.perf_counter()
    llm.eval(tokens)
    token = likeliest(llm)  # waits for the logits
    prefilled = time.perf_counter()
    for _ in range(decode):
        llm.eval([token])
        token = likeliest(llm)
    end = time.perf_counter()
    return {"prefill_tok_s": len(tokens) / (prefilled - start), "decode_tok_s": decode / (end - prefilled)}


def other(command):
    """One run of the program that is compared."""
    result = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.strip().splitlines()[-1])


def report(system, rounds, tokens, decode):
    """Print the medians and every round."""
    medians = {key: statistics.median(r[key] for r in rounds) for key in ("prefill_tok_s", "decode_tok_s")}
    line = {"system": system, **medians, "n": tokens, "decoded": decode, "repeats": len(rounds), "rounds": rounds}
    print(json.dumps(line))


def main():
    """Read the options, take turns, report."""
    parser = argparse.ArgumentParser(description="prefill and decode speed of llama.cpp")
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--text", type=Path, default=DEMO, help="JSONL passages that make the prompt")
    parser.add_argument("--tokens", type=int, default=701, help="length of the prompt")
    parser.add_argument("--decode", type=int, default=64, help="tokens generated after it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=512, help="tokens evaluated at once; llama.cpp's default is 512")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that are kept")
    parser.add_argument("--against", help="command to compare with")
    args = parser.parse_args()

    llm = llama_cpp.Llama(
        args.model,
        n_ctx=args.tokens + args.decode + 1,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        n_batch=args.batch,
        n_ubatch=args.batch,
        verbose=False,
    )
    tokens = prompt(llm, args.text, args.tokens)
    ours, theirs = [], []
    for _ in range(args.repeats + 1):
        ours.append(measure(llm, tokens, args.decode))
        if args.against:
            theirs.append(other(args.against))
    report(f"llama.cpp (llama-cpp-python {llama_cpp.__version__})", ours[1:], args.tokens, args.decode)
    if args.against:
        report(args.against, theirs[1:], args.tokens, args.decode)


if __name__ == "__main__":
    main()
