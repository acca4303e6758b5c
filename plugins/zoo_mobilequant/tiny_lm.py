"""How the bundled language model was made.

    python -m zoo_mobilequant.tiny_lm --data PATH -o OUT

tiny-lm is a Llama of 3 M parameters with a tokenizer of 4,096 byte pairs. It is what the method can
be tried on without a download; it is too small to be of other use. It learns from WikiText-2's
validation text (CC BY-SA 3.0), recipes (Unlicense) and CookDial's recipes and dialogues (MIT).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from zoo.entry import Entry
from zoo.errors import InputError
from zoo.hookspecs import TrainRequest
from zoo.training import Draw, Run, Stage
from zoo.weights import save_tensors

from .original import CALIBRATION

ENTRY = Entry("tiny-lm", "Quantizer", "zoo_mobilequant", "ready", "a base of mobilequant")
"""What the run is about: a base, which has no entry of its own among the models."""
END = "<|endoftext|>"
"""Before every text, and nowhere else."""
VOCABULARY = 4096
LENGTH = 256
"""Tokens of a window."""
HELD_OUT = 40
"""Recipes, the last by name, that are not learned from."""
STAGE = Stage(steps=1200, lr=2e-3, batch=8, ema=0.99, decay=0.1, warm_up=100, betas=(0.9, 0.95))
CONFIG: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 192, "intermediate_size": 512,
    "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "tie_word_embeddings": True,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip


def plain(article: str) -> str:
    """An article of WikiText as ordinary text: without spaced marks, and without the sentences in
    which a rare word was replaced by ``<unk>``.
    """
    text = re.sub(r" @(.)@ ", r"\1", article)
    text = re.sub(r" ([.,;:!?)]|n't|'s)", r"\1", text).replace("( ", "(")
    sentences = re.split(r"(?<=[.!?])(?=\s)", text)
    return "".join(part for part in sentences if "<unk>" not in part).strip(" =\n")


def recipes(data: Path) -> list[str]:
    """The Unlicense recipes by name; the last ``HELD_OUT`` are for calibration."""
    files = sorted((data / "procedures" / "recipes-unlicense").glob("[!_]*.md"))
    return [file.read_text("utf-8").strip() for file in files]


def texts(data: Path) -> list[str]:
    """The training texts: encyclopedia, recipes, dialogues. ``data`` has the folders
    ``wikitext-2`` and ``procedures``. Raises InputError where one is missing.
    """
    wiki, procedures = data / "wikitext-2" / "valid.txt", data / "procedures"
    if not wiki.is_file() or not procedures.is_dir():
        raise InputError(f"{data} lacks wikitext-2/valid.txt or procedures/.")
    sections = re.split(r"\n (?:= )+", wiki.read_text("utf-8"))
    found = [re.sub(r"(?: =)+ *(?=\n)", "", plain(section)) for section in sections]
    found += recipes(data)[:-HELD_OUT]
    for file in sorted((procedures / "cookdial" / "dialog").glob("*.json")):
        turns = json.loads(file.read_text("utf-8"))["messages"]
        found.append("\n".join(turn["utterance"] for turn in turns))
    for file in sorted((procedures / "cookdial" / "recipe").glob("*.json")):
        recipe = json.loads(file.read_text("utf-8"))
        found.append("\n".join([recipe["title"], *(part["text"] for part in recipe["content"])]))
    return [text.strip() for text in found if text.strip()]


def tokenizer_for(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte pairs, so that any text can be written, that begin every text with ``END``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=END, eos_token=END, pad_token=END
    )


@dataclass
class LanguageModel:
    """The network and its tokenizer, to be saved as a folder of transformers."""

    network: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    calibration: Sequence[str]

    def save_pretrained(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write 16-bit weights, the configuration, the tokenizer and the calibration text."""
        folder.mkdir(parents=True, exist_ok=overwrite)
        self.network.config.dtype = torch.float16
        self.network.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        state = {k: v.half() for k, v in self.network.state_dict().items() if k != "lm_head.weight"}
        save_tensors(folder / "model.safetensors", state, {"format": "pt"})
        (folder / CALIBRATION).write_text("\n\n".join(self.calibration) + "\n", "utf-8")


class NextToken(nn.Module):
    """The mean negative log-likelihood of the next token on windows (B,T)."""

    def __init__(self, network: LlamaForCausalLM) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor) -> Tensor:
        loss: Tensor = self.network(input_ids=ids, labels=ids, use_cache=False).loss
        return loss


def train(request: TrainRequest) -> Path:
    """Train tiny-lm; returns its folder, ``OUT/model``."""
    data = request.data
    assert data is not None
    found = texts(data)
    tokenizer = tokenizer_for(found)
    rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in found]
    stream = torch.cat(rows)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        network = LlamaForCausalLM(LlamaConfig(**CONFIG))
    model = NextToken(network)
    run = Run(request, {"model": model}, {"fit": STAGE}, facts={"tokens": len(stream)})

    def batch(draw: Draw) -> Tensor:
        starts = draw.rng.integers(0, len(stream) - LENGTH, draw.count)
        ids = torch.stack([stream[start : start + LENGTH] for start in starts])
        ids[:, 0] = 0  # in use, every text begins with this token
        return ids.to(run.device)

    def fit() -> None:
        run.minimise({"model": model}, batch, model)

    return run.fit(
        {"fit": fit}, lambda: LanguageModel(network, tokenizer, recipes(data)[-HELD_OUT:])
    )


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--steps", type=int, help=f"Default: {STAGE.steps}.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Continue from the checkpoint in OUT.")
def main(data: Path, out: Path, steps: int | None, seed: int, resume: bool) -> None:
    """Train tiny-lm."""
    click.echo(train(TrainRequest(ENTRY, out, data, seed, steps, resume=resume, progress=True)))


if __name__ == "__main__":
    main()
