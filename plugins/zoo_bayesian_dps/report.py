"""The result of a fit: a summary for programs, and a page with pictures for people."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import InputError
from zoo.tables import Table
from zoo.weights import atomic_file

from .data import per_cent, pixels_of, short
from .sampler import WeightSampler

SHOWN = 24


def moment(sampler: WeightSampler, train_loss: float, target_loss: float) -> dict[str, float]:
    """One point of a run's history."""
    return {
        "step": float(sampler.step_number),
        "train_loss": round(train_loss, 5),
        "target_loss": round(target_loss, 5),
        "mean_weight": round(sampler.mean_weight, 5),
        "threshold": round(sampler.threshold, 5),
    }


def summary(
    found: Mapping[str, Tensor],
    sampler: WeightSampler,
    steps: int,
    notes: Sequence[str],
    classes: Sequence[str],
    sources: Sequence[str],
) -> dict[str, Any]:
    """JSON: the distribution of the weights, the weight of each group, and notes."""
    w = found["weights"]
    n, visits = len(w), float(found["visits"].float().mean())
    notes = list(notes)
    if visits < 2:
        notes.append(
            f"each example was seen {visits:.1f} times: too few for weights of their own. Raise "
            "epochs, or use weighting=network."
        )
    if n > 1 and float(w.std()) < 0.02 and sampler.keep is not None and sampler.keep < 1:
        notes.append("the weights hardly differ: raise epochs, or lower keep.")
    groups = {}
    for key, names in (("labels", classes), ("sources", sources)):
        if key in found and len(names) <= 1000:
            groups[key] = _masses(w, found[key], names)
    uneven = _uneven(groups.get("labels", []))
    if uneven:
        notes.append(
            f"small classes lost their weight ({', '.join(uneven[:5])}): rare looks like wrong. "
            "Select with per='label', and look at their rows before you drop any."
        )
    return {
        "n": n,
        "steps": steps,
        "keep": sampler.keep,
        "mean_weight": round(float(w.mean()), 5),
        "below_0.1": round(float((w < 0.1).float().mean()), 5),
        "above_0.9": round(float((w > 0.9).float().mean()), 5),
        "visits": round(visits, 2),
        "threshold": round(sampler.threshold, 5),
        "groups": groups,
        "notes": notes,
    }


def _masses(w: Tensor, numbers: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """For each group: rows, mean weight, share of rows and of the whole weight."""
    rows = torch.bincount(numbers.long(), minlength=len(names)).double()
    mass = torch.zeros(len(names), dtype=torch.float64).index_add(0, numbers.long(), w.double())
    return [
        {
            "name": name,
            "rows": int(rows[i]),
            "mean_weight": round(float(mass[i] / rows[i]), 5),
            "share_of_rows": round(float(rows[i] / rows.sum()), 5),
            "share_of_weight": round(float(mass[i] / mass.sum().clamp_min(1e-12)), 5),
        }
        for i, name in enumerate(names)
        if rows[i]
    ]


def _uneven(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Classes of less than half the usual size with less than half the largest's weight."""
    if len(groups) < 2:
        return []
    usual = float(np.median([g["rows"] for g in groups]))
    largest = max(groups, key=lambda g: g["rows"])["mean_weight"]
    return [g["name"] for g in groups if g["rows"] < usual / 2 and g["mean_weight"] < largest / 2]


# --- the page -------------------------------------------------------------------------------------


def write(
    folder: Path,
    found: Mapping[str, Tensor],
    summary: Mapping[str, Any],
    config: Mapping[str, Any],
    train: Table | None,
    chosen: np.ndarray | None,
    suspects: Sequence[Mapping[str, Any]],
) -> None:
    """``report.html``, with its pictures in it, and ``issues.jsonl``, one suspect a line."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / "issues.jsonl") as temporary:
        lines = [json.dumps(row, default=str) + "\n" for row in suspects]
        temporary.write_text("".join(lines), "utf-8")
    some = suspects[:SHOWN]
    w = found["weights"].numpy()
    order = np.argsort(-w, kind="stable")
    parts = [f"<h1>Weights of {len(w):,} training examples</h1>"]
    parts += [f"<p class=note>{html.escape(note)}</p>" for note in summary["notes"]]
    facts = {
        "mean weight": f"{summary['mean_weight']:.3f}"
        + ("" if summary["keep"] is None else f" (asked: {summary['keep']:.3f})"),
        "rows estimated wrong": f"{float(found['wrong'].sum()):,.0f}",
        "weight below 0.1": per_cent(summary["below_0.1"]),
        "weight above 0.9": per_cent(summary["above_0.9"]),
        "loss threshold": f"{summary['threshold']:.3f}",
        "visits of each example": f"{summary['visits']:.1f}",
    }
    if chosen is not None:
        facts["selected"] = f"{len(chosen):,}"
    parts.append(_table(["", ""], [[k, v] for k, v in facts.items()]))
    facts_of = ("row", "id", "label", "suggested", "probability", "weight", "file", "text")
    if suspects:
        columns = [name for name in facts_of if any(name in row for row in some)]
        cells = [[str(row.get(name, "")) for name in columns] for row in some]
        pictures = "" if train is None else _pictures(train, some)
        title = f"Most probably wrong: {len(some):,} of {len(suspects):,} in issues.jsonl"
        parts.append(f"<h2>{title}</h2>{pictures}{_table(columns, cells)}")
    parts.append(f"<h2>Histogram</h2>{_image(histogram(w))}")
    taken = np.zeros(len(w), bool)
    if chosen is not None:
        taken[chosen] = True
    for key, groups in summary["groups"].items():
        numbers = found[key].numpy()
        names = config.get("classes" if key == "labels" else "sources", [])
        rows = []
        for g in groups:
            row = [g["name"], str(g["rows"]), f"{g['mean_weight']:.3f}",
                   per_cent(g["share_of_rows"]), per_cent(g["share_of_weight"])]  # fmt: skip
            if chosen is not None and g["name"] in names:
                mine = numbers == names.index(g["name"])
                row.append(per_cent(float(taken[mine].mean())))
            rows.append(row)
        head = [key[:-1], "rows", "mean weight", "of the rows", "of the weight"]
        parts.append(f"<h2>By {key[:-1]}</h2>" + _table(head + ["selected"] * (chosen is not None),
                                                        rows))  # fmt: skip
    if train is not None:
        for title, ids in (("Lightest", order[::-1][:SHOWN]), ("Heaviest", order[:SHOWN])):
            parts.append(f"<h2>{title}</h2>{_examples(train, ids, found, config)}")
    page = (
        "<!doctype html><meta charset=utf-8><title>bayesian-dps</title><style>body{font:15px "
        "sans-serif;max-width:60em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
        "td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:left}"
        ".note{background:#fff3cd;padding:.5em}figure{display:inline-block;margin:.3em;width:7em;"
        "font-size:11px;vertical-align:top}figure img{width:6.5em;image-rendering:pixelated}"
        "</style>" + "\n".join(parts)
    )
    with atomic_file(folder / "report.html") as temporary:
        temporary.write_text(page, "utf-8")


def histogram(w: np.ndarray, bins: int = 40) -> Any:
    """A picture of the distribution of the weights, from 0 at the left to 1 at the right."""
    from PIL import Image, ImageDraw

    counts, _ = np.histogram(w, bins=bins, range=(0, 1))
    image = Image.new("RGB", (bins * 14 + 20, 190), "white")
    draw = ImageDraw.Draw(image)
    for i, count in enumerate(counts):
        top = 160 - 140 * count / max(1, counts.max())
        draw.rectangle((10 + i * 14, top, 22 + i * 14, 160), fill="#1f5fbf")
    draw.line((10, 161, 10 + bins * 14, 161), fill="black")
    for x, text in ((10, "0"), (bins * 7, "weight"), (bins * 14, "1")):
        draw.text((x, 168), text, fill="black")
    return image


def _pictures(train: Table, suspects: Sequence[Mapping[str, Any]]) -> str:
    """The suspects as pictures, with their label and the suggested one."""
    figures = []
    for row in suspects:
        picture = _thumbnail(train[row["row"]], train.kind)
        if picture is not None:
            said = f"{row['row']}: labelled {row.get('label', '')}"
            if "suggested" in row:
                said += f", suggested {row['suggested']}"
            figures.append(
                f"<figure>{_image(picture)}<figcaption>{html.escape(said)}</figcaption></figure>"
            )
    return "".join(figures)


def _examples(
    train: Table, ids: np.ndarray, found: Mapping[str, Tensor], config: Mapping[str, Any]
) -> str:
    figures, rows = [], []
    names = config.get("classes", [])
    for i in ids.tolist():
        example = train[i]
        label = ""
        if "labels" in found:
            number = int(found["labels"][i])
            label = names[number] if number < len(names) else str(number)
        facts = [str(i), label, f"{float(found['weights'][i]):.3f}",
                 f"{float(found['losses'][i]):.2f}"]  # fmt: skip
        picture = _thumbnail(example, train.kind)
        if picture is not None:
            said = f"{facts[0]}: {html.escape(label)}<br>weight {facts[2]}, loss {facts[3]}"
            figures.append(f"<figure>{_image(picture)}<figcaption>{said}</figcaption></figure>")
        else:
            rows.append([*facts, short(example)])
    if figures:
        return "".join(figures)
    return _table(["row", "label", "weight", "mean loss", ""], rows)


def _thumbnail(example: Any, kind: str) -> Any:
    from PIL import Image

    if kind != "image":
        return None
    try:
        pixels = pixels_of(example)
    except InputError:
        return None
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        return None
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:  # normalised in some way
        pixels = (pixels - low) / max(high - low, 1e-12)
    array = (pixels.expand(3, -1, -1).permute(1, 2, 0) * 255).round().byte().numpy()
    image = Image.fromarray(array)
    image.thumbnail((128, 128))
    return image


def _image(picture: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" src="data:image/png;base64,{data}">'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    top = line(head, "th") if any(head) else ""
    return "<table>" + top + "".join(line(row, "td") for row in rows) + "</table>"
