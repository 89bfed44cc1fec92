#!/usr/bin/env python3
"""Write the seeds of the fuzz targets: small sound files of each kind, as the targets take them. Standard library only.

usage: python3 tests/fuzz/seeds.py [FOLDER]      (default: seeds/ beside this file, which git ignores)
"""

import gzip
import json
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "seeds"
ROOT = HERE.parent.parent


def put(target: str, name: str, content: bytes) -> None:
    folder = OUT / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def safetensors(tensors: dict, metadata: dict) -> bytes:
    """A file of zeros: name -> (dtype, shape, bytes of a number)."""
    header, at = {"__metadata__": metadata}, 0
    for name, (dtype, shape, width) in tensors.items():
        size = width
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(at)


def gguf() -> bytes:
    """Version 3: a name, a tokenizer of four tokens, one tensor in F32 and one in Q8_0."""
    text = lambda s: struct.pack("<Q", len(s)) + s.encode()
    tokens = ["<s>", "a", "b", "ab"]
    fields = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("tokenizer.ggml.model") + struct.pack("<I", 8) + text("gpt2"),
        text("tokenizer.ggml.pre") + struct.pack("<I", 8) + text("gpt-2"),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, len(tokens)) + b"".join(map(text, tokens)),
        text("tokenizer.ggml.token_type") + struct.pack("<IIQ", 9, 5, 4) + struct.pack("<4i", 3, 1, 1, 1),
        text("tokenizer.ggml.merges") + struct.pack("<IIQ", 9, 8, 1) + text("a b"),
        text("tokenizer.ggml.bos_token_id") + struct.pack("<II", 4, 0),
        text("llama.rope.freq_base") + struct.pack("<If", 6, 10000.0),
    ]
    tensors = [
        text("token_embd.weight") + struct.pack("<I2QIQ", 2, 4, 4, 0, 0),
        text("output.weight") + struct.pack("<I2QIQ", 2, 32, 2, 8, 64),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields)) + b"".join(fields) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(64) + bytes(68)


def pdf(painted: bytes) -> bytes:
    """One page that paints this."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [4 0 R] /Count 1 /MediaBox [0 0 600 800] >>",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Type /Page /Parent 2 0 R /Resources << /Font << /F 3 0 R >> >> /Contents 5 0 R >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(painted), painted),
    ]
    file, rows = b"%PDF-1.4\n", b""
    for number, content in enumerate(objects, 1):
        rows += b"%010d 00000 n \n" % len(file)
        file += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    return file + b"xref\n0 6\n0000000000 65535 f \n%strailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (rows, len(file))


def main() -> None:
    record = json.dumps({"id": "a", "title": "Ice", "text": "Ice is cold. It floats.", "year": 1990}) + "\n"
    table = "id\ttext\ttitle\n1\tIce is cold.\tIce\n"
    page = "<!DOCTYPE html><html><head><title>Ice</title></head><body><h1>Ice</h1><p>It is cold &amp; floats.</p></body></html>"
    notes = "# Ice\n\nIt is cold.\n\n```\ncode\n```\n\n## Floats\n\n- one\n- two\n"
    # The targets read numbers from the end of the input: which ending, and the options.
    for at, content in enumerate([record, table, notes, "Ice is cold. It floats.", page]):
        put("corpus", f"seed-{at}", content.encode() + bytes([0, at]))
    put("corpus", "seed-gz", gzip.compress(record.encode()) + bytes([0, 7]))
    # The first number from the end says which part of which file it is.
    painted = b"BT /F 12 Tf 1 0 0 1 50 700 Tm (Ice is cold.) Tj 0 -14 Td [(It) -250 (floats.)] TJ ET\nq 1 0 0 1 9 9 cm (x) ' Q"
    unicode = b"/CIDInit /ProcSet findresource begin begincmap 1 begincodespacerange <00> <FF> endcodespacerange 1 beginbfchar <49> <0049> endbfchar 1 beginbfrange <61> <7A> <0061> endbfrange endcmap"
    written = b'<w:document><w:body><w:p><w:pPr><w:pStyle w:val="T"/></w:pPr><w:r><w:t>Ice &amp; snow</w:t><w:tab/></w:r></w:p><w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t></w:r></w:p></w:tc></w:tr></w:tbl></w:body></w:document>'
    styles = b'<w:styles><w:style w:styleId="T"><w:name w:val="heading 1"/><w:basedOn w:val="N"/></w:style></w:styles>'
    for at, content in enumerate([painted, unicode, written, styles], 1):
        put("document", f"seed-{at}", content + bytes([at]))
    put("document", "seed-0", pdf(painted) + bytes([0]))
    options = b'index = ["wiki=/tmp/wiki"]\nlisten = "127.0.0.1:8080"\nwritable = true\nqueue = 9\ndense-weight = 0.5\n'
    pem = b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n"
    kept = safetensors({"a": ("F32", [2, 2], 4)}, {"nunatak.progress": json.dumps({"step": 3})})
    for at, content in enumerate([b"0123456789abcdef0123456789abcdef read-only\n# none\n", b"the a # and\nof | so\n", options, pem, kept]):
        put("settings", f"seed-{at}", content + bytes([at]))
    question = {"id": "1", "question": "what floats", "answers": ["ice"], "positive_ids": ["a"]}
    task = {"input": "2+2", "target": "4", "task": "sum", "cluster": "maths", "split": "train", "choices": ["4", "5"]}
    calibration = (ROOT / "models/calibration.json").read_bytes()
    rows = [json.dumps(question).encode(), json.dumps(task).encode(), b"1 Q0 a 1 0.5 run\n", b"{}\n", b"{}\n", calibration]
    for at, content in enumerate(rows):
        put("records", f"seed-{at}", content + bytes([at]))
    for at, text in enumerate(["who walks over the ice?", "source=wiki year>=1990", "milvus://host:19530/wiki?token=a", "bm25", 'a="b c" d!=1,2']):
        put("words", f"seed-{at}", text.encode())
    index = ROOT / "tests/compat/index_v3"
    put("manifest", "seed", (index / "manifest.json").read_bytes().rsplit(b",\n  \"checksum\"", 1)[0])
    for which in range(28):
        put("index", f"seed-{which}", bytes([0, 0, 7, 0, which]))
    put("gguf", "seed", gguf())
    prompt = {"format": 1, "kind": "embeddings", "positions": 2, "target": {"name": "t", "layers": 1, "kv_width": 2, "hidden": 4}}
    prompt = json.dumps({**prompt, "template": "plain", "abstains": False, "training": None})
    put("safetensors", "prompt", safetensors({"prompt": ("F16", [2, 4], 2)}, {"nunatak.prompt": prompt}))
    put("safetensors", "weights", safetensors({"a": ("F32", [2, 2], 4), "b": ("BF16", [3], 2), "c": ("F16", [1], 2)}, {}))
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    model["vocab"] = {"[UNK]": 0, "ice": 1, "##s": 2}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None}
    tokenizer |= {"pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None, "model": model}
    put("tokenizer", "wordpiece", json.dumps(tokenizer).encode())
    bpe = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "dropout": None, "unk_token": None}
    put("tokenizer", "bpe", json.dumps(tokenizer | {"model": bpe, "pre_tokenizer": None}).encode())
    config = json.dumps({"architectures": ["BertModel"], "hidden_size": 8, "max_position_embeddings": 16}).encode()
    put("model_folder", "seed", config)


main()
