"""The commands of a quantized model: ``zoo run FOLDER generate``, ``eval`` and ``speed``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from zoo.errors import InputError, NotReadyError, OptionError, ZooError

from .contenders import compared
from .evaluate import (
    WINDOW,
    accuracy,
    perplexity,
    read_choices,
    read_text,
    report,
    text_windows,
)
from .kernels import plan
from .model import MobileQuantized
from .original import opened

BEYOND = 0.01
"""A site that clips a larger share of its values is reported."""


def generate(model: Any, args: list[str]) -> int:
    """``generate PROMPT``: what the quantized model says."""
    parser = argparse.ArgumentParser("zoo run FOLDER generate", description=generate.__doc__)
    parser.add_argument("prompt")
    parser.add_argument("--tokens", type=int, default=40, help="new tokens, at most")
    parser.add_argument("--chat", action="store_true", help="as a message, by the chat template")
    parser.add_argument("--integers", action="store_true", help="compute on integers (CPU)")
    given = parser.parse_args(args)
    quantized, tokenizer = _ready(model)
    if given.tokens < 1:
        raise OptionError(f"--tokens {given.tokens}: expected 1 or more.")
    if given.chat:
        if not getattr(tokenizer, "chat_template", None):
            raise InputError("this model's tokenizer has no chat template. Leave out --chat.")
        message = [{"role": "user", "content": given.prompt}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(given.prompt)["input_ids"]
    if not ids:
        raise InputError("the prompt is empty.")
    network = quantized.integers() if given.integers else quantized
    row = torch.tensor([ids], device=network.device)
    made = network.generate(
        row, attention_mask=torch.ones_like(row), max_new_tokens=given.tokens, do_sample=False
    )
    print(tokenizer.decode(made[0, len(ids) :] if given.chat else made[0], True))
    return 0


def eval_(model: Any, args: list[str]) -> int:
    """``eval FILE``: perplexity of a text, or accuracy on a .jsonl of question, choices, answer."""
    parser = argparse.ArgumentParser("zoo run FOLDER eval", description=eval_.__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--original", help="folder or Hub id; by default where it came from")
    parser.add_argument("--integers", action="store_true", help="on integers too (CPU)")
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args(args)
    quantized, tokenizer = _ready(model)
    choices = read_choices(given.file) if given.file.suffix == ".jsonl" else None
    text = "" if choices else read_text(given.file)
    models: dict[str, Any] = {"quantized": quantized}
    notes: list[str] = []
    try:
        models = {"original": _original(quantized, given.original), **models}
    except ZooError as error:
        if given.original:
            raise
        notes.append(
            f"The original is not available for comparison: {error} Name it: --original FOLDER."
        )
    if given.integers:
        models["integers"] = quantized.integers()
    rows: dict[str, dict[str, float]] = {}
    for name, each in models.items():
        device = "cpu" if name == "integers" else quantized.device
        if choices is not None:
            right = accuracy(each, tokenizer, choices, device, not given.json)
            rows[name] = {"accuracy": sum(right) / len(right), "questions": float(len(right))}
        else:
            length = _window(quantized)
            rows[name] = perplexity(each, tokenizer, text, device, not given.json, length)
    texts = text or "\n".join(f"{c.question} {c.choices[c.answer]}" for c in choices or ())
    notes += _clipped(quantized, tokenizer, texts)
    if given.json:
        print(json.dumps({"file": str(given.file), "models": rows, "notes": notes}, indent=2))
    else:
        print(report(rows))
        print("\n".join(f"note: {note}" for note in notes), end="\n" if notes else "")
    return 0


def speed(model: Any, args: list[str]) -> int:
    """``speed``: CPU time of a prompt and of a token after it, in floats and on integers, on one
    thread."""
    parser = argparse.ArgumentParser("zoo run FOLDER speed", description=speed.__doc__)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prompt")
    parser.add_argument("--repeats", type=int, default=5, help="the quickest counts")
    given = parser.parse_args(args)
    quantized, _ = _ready(model)
    longest = int(quantized.module.config.max_position_embeddings)
    for name, value, most in (("prompt", given.prompt, longest), ("repeats", given.repeats, 1000)):
        if not 1 <= value <= most:
            raise OptionError(f"--{name} {value}: expected a whole number from 1 to {most}.")
    found = compared(quantized, given.prompt, given.repeats)
    width = max(map(len, found))
    for name, (prompt, token) in found.items():
        base = found["floats"]
        print(
            f"{name:{width}}  prompt {1000 * prompt:9.1f} ms ({base[0] / prompt:.2f}x)   "
            f"token {1000 * token:8.2f} ms ({base[1] / token:.2f}x)"
        )
    if not plan().remark:  # else integers() has warned
        print(plan().reason)
    return 0


def _ready(model: Any) -> tuple[MobileQuantized, Any]:
    if not isinstance(model, MobileQuantized):
        raise NotReadyError(
            "this is the quantizer; the command is for what it made: zoo quantize mobilequant LLM "
            "-o FOLDER, then zoo run ./FOLDER ..."
        )
    if model.tokenizer is None:
        raise NotReadyError("this model was saved without a tokenizer. Pass one to quantize().")
    return model, model.tokenizer


def _window(model: MobileQuantized) -> int:
    """Tokens of text in a window: no more than the network has positions for."""
    longest = getattr(model.module.config, "max_position_embeddings", None) or WINDOW + 1
    return min(WINDOW, int(longest) - 1)


def _original(model: MobileQuantized, given: str | None) -> Any:
    """What the model was made from, or what the user says it was."""
    source = model.source_model
    if given is not None:
        return opened(given, model.device).network
    if source.get("sha256") is None:  # a Hub id; a folder has the hash of its files
        revision = source.get("revision")
        name = f"{source['id']}@{revision}" if revision else source["id"]
        return opened(name, model.device).network
    found = opened(Path(source["id"]), model.device)
    if found.source["sha256"] != source["sha256"]:
        raise InputError(f"{source['id']} has changed since it was quantized.")
    return found.network


def _clipped(model: MobileQuantized, tokenizer: Any, text: str) -> list[str]:
    """A remark where the text is unlike the calibration's."""
    first = text_windows(tokenizer, text, _window(model))[:16]
    shares: dict[str, float] = {}
    for row in first:
        for site, share in model.clipped(row[None]).items():
            shares[site] = shares.get(site, 0.0) + share / len(first)
    beyond = sorted((share, site) for site, share in shares.items() if share > BEYOND)
    if not beyond:
        return []
    share, worst = beyond[-1]
    many = "1 activation clips" if len(beyond) == 1 else f"{len(beyond)} activations clip"
    its = "its" if len(beyond) == 1 else "their"
    return [
        f"{many} more than {BEYOND:.0%} of {its} values, most of all "
        f"{worst} ({share:.0%}): this text differs from the calibration text. Quantize again with "
        "text of this kind."
    ]
