"""Generate text with an exported language model: numpy, onnxruntime, tokenizers; no torch, no zoo.

zoo export ./small --format onnx-qdq -o exported
python onnx_generate.py exported "The capital of France is"
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder, *prompts = sys.argv[1:]
told = json.loads(Path(folder, "model.json").read_text("utf-8"))
if told["format"] != 1:
    sys.exit(f"{folder} has format {told['format']}; this program runs 1. Export again.")
if len(prompts) != told["batch"]:
    sys.exit(f"{len(prompts)} prompts; this export takes {told['batch']} at a time.")
words = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
ids = words.encode(prompts[0]).ids
if not 0 < len(ids) <= told["length"]:
    sys.exit(f"The prompt has {len(ids)} tokens; this export takes 1 to {told['length']}.")

exact = onnxruntime.SessionOptions()
exact.add_session_config_entry("session.x64quantprecision", "1")  # no sum saturates, on any CPU
prefill, decode = (onnxruntime.InferenceSession(Path(folder, name), exact)
                   for name in ("prefill.onnx", "decode.onnx"))  # fmt: skip
cache = {given.name: np.zeros(given.shape, given.type[len("tensor("):-1])
         for given in decode.get_inputs() if given.name.startswith("cache.")}  # fmt: skip
names = ["logits", *(name.removeprefix("cache.") for name in cache)]

prompt = np.array([ids + [0] * (told["length"] - len(ids))], np.int32)
given = {"input_ids": prompt, "last": np.array([len(ids) - 1], np.int32)}
(scores, *parts), begin = prefill.run(names, given), 0
for _ in range(40):
    for whole, part in zip(cache.values(), parts, strict=True):
        whole[:, begin : begin + part.shape[1]] = part
    token, begin = int(scores[0].argmax()), len(ids)
    if token in told["end"] or begin == told["cache"]:
        break
    ids.append(token)
    given = {"input_ids": np.array([[token]], np.int32), "position": np.array([begin], np.int32)}
    scores, *parts = decode.run(names, given | cache)
print(words.decode(ids))
