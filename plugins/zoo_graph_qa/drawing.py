"""A procedure graph as a picture, SVG or PNG, and a coverage report as a page."""

from __future__ import annotations

import html
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from zoo.interfaces import QAPair, QASet

COLOURS = {
    "action": "#1f4e79", "object": "#dff0d8", "tool": "#fde9c9", "duration": "#e6dcf5",
    "temperature": "#fbd5d5", "until": "#d7ecfb", "purpose": "#f7e1f0", "other": "#e8e8e8",
    "material": "#cfe8cf", "step": "#f6f6f6",
}  # fmt: skip
FLOW, AGAIN = "#c0504d", "#7f7f7f"
WIDTH, GUTTER, LINE, MARGIN, SIZE = 1200, 130, 30, 16, 13
DASHES = str.maketrans({"\u2013": "-", "\u2014": "-", "\u2018": "'", "\u2019": "'", "\u201c": '"',
                        "\u201d": '"', "\u00b0": " deg ", "\u00d7": "x"})  # fmt: skip
"""What ``unicodedata`` does not write in ASCII."""
MOST_ROWS = 400
"""Steps that are drawn: a picture of more cannot be read."""


@dataclass(frozen=True)
class Box:
    """A rectangle with a text, at (x, y) in pixels."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    text: str
    ink: str = "#222222"
    note: str = ""
    """Small text after it: the role."""


@dataclass(frozen=True)
class Arrow:
    """From one row to a later one, around the left side."""

    x: float
    y: float
    to: float
    depth: float
    colour: str


@dataclass(frozen=True)
class Layout:
    """What is drawn."""

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    height: int


def layout(graph: Mapping[str, Any]) -> Layout:
    """Materials above; then each step, and below it a row for each action with its fillers."""
    nodes = {n["id"]: n for n in graph["nodes"]}
    boxes: list[Box] = [*_key()]
    x, y = float(GUTTER), float(MARGIN + LINE + 8)
    materials = [n for n in graph["nodes"] if n["kind"] == "material"]
    number = {n["id"]: i + 1 for i, n in enumerate(materials)}
    for node in materials:
        box, x, y = _placed(f"{number[node['id']]}  {_short(node['text'], 60)}", x, y, "material")
        boxes.append(box)
    y += LINE + 14 if materials else 0
    rows: dict[str, float] = {}
    used: dict[str, list[str]] = {}
    for edge in graph["edges"]:
        if edge["role"] == "material":
            used.setdefault(edge["target"], []).append(str(number[edge["source"]]))
    steps = [n for n in graph["nodes"] if n["kind"] == "step"]
    for step in steps[:MOST_ROWS]:
        text = f"{step['step'] + 1}.  {_short(' '.join(step['text'].split()), 150)}"
        boxes.append(
            Box(GUTTER + 24, y, WIDTH - GUTTER - 24 - MARGIN, LINE - 6, COLOURS["step"], text)
        )
        y += LINE
        actions = [n for n in graph["nodes"] if n["kind"] == "action" and n["step"] == step["step"]]
        for action in sorted(actions, key=lambda n: n["start"]):
            rows[action["id"]] = y + (LINE - 8) / 2
            marks = "not " if action.get("negated") else ""
            verb, x, y = _placed(marks + action["text"], GUTTER + 24.0, y, "action", "#ffffff")
            boxes.append(verb)
            for edge in graph["edges"]:
                if edge["source"] == action["id"] and edge["role"] not in ("next", "uses", "again"):
                    node = nodes[edge["target"]]
                    box, x, y = _placed(
                        _short(" ".join(node["text"].split()), 60), x, y, node["kind"],
                        note=edge["role"], indent=GUTTER + 120.0,
                    )  # fmt: skip
                    boxes.append(box)
            if action["id"] in used:
                tag = "uses " + ", ".join(used[action["id"]])
                box, x, y = _placed(tag, x, y, "material", indent=GUTTER + 120.0)
                boxes.append(box)
            y += LINE
        y += 6
    arrows = []
    for edge in graph["edges"]:
        if edge["role"] in ("uses", "again") and {edge["source"], edge["target"]} <= rows.keys():
            a, b = rows[edge["source"]], rows[edge["target"]]
            depth = min(12 + 9 * (b - a) / (2 * LINE), GUTTER - 20)
            if edge["role"] == "uses":
                arrows.append(Arrow(GUTTER + 22, a, b, depth, FLOW))
            else:
                arrows.append(Arrow(GUTTER + 22, a, b, min(depth + 8, GUTTER - 12), AGAIN))
    return Layout(tuple(boxes), tuple(arrows), int(y) + MARGIN)


def _key() -> list[Box]:
    x, made = float(GUTTER), []
    for kind, colour in COLOURS.items():
        if kind != "step":
            ink = "#ffffff" if kind == "action" else "#222222"
            made.append(Box(x, MARGIN, _width(kind), LINE - 8, colour, kind, ink))
            x += _width(kind) + 6
    made.append(Box(x, MARGIN, 150, LINE - 8, "#ffffff", "product used later", FLOW))
    made.append(Box(x + 140, MARGIN, 150, LINE - 8, "#ffffff", "same tool again", AGAIN))
    return made


def _width(text: str) -> float:
    return 7.0 * len(text) + 14


def _placed(
    text: str, x: float, y: float, kind: str, ink: str = "#222222", note: str = "",
    indent: float = GUTTER,
) -> tuple[Box, float, float]:  # fmt: skip
    """A box at (x, y), or on the next line where it does not fit; and where the next one goes."""
    wide = _width(text)
    after = 6.0 * len(note) + 8 if note else 0.0
    if x + wide + after > WIDTH - MARGIN and x > indent:
        x, y = indent, y + LINE
    box = Box(x, y, wide, LINE - 8, COLOURS[kind], text, ink, note)
    return box, x + wide + after + 8, y


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def svg(drawn: Layout) -> str:
    """The picture as SVG."""
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{drawn.height}" '
        f'font-family="sans-serif" font-size="{SIZE}">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for arrow in drawn.arrows:
        left, y, to = arrow.x - arrow.depth, arrow.y, arrow.to
        out.append(
            f'<path d="M{arrow.x} {y:g} C{left:g} {y:g} {left:g} {to:g} {arrow.x - 5} {to:g}" '
            f'fill="none" stroke="{arrow.colour}" stroke-width="1.5"/>'
            f'<path d="M{arrow.x} {to:g} l-7 -4 v8 z" fill="{arrow.colour}"/>'
        )
    for box in drawn.boxes:
        out.append(
            f'<rect x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}" '
            f'rx="4" fill="{box.fill}"/>'
            f'<text x="{box.x + 7:g}" y="{box.y + box.height - 6:g}" fill="{box.ink}">'
            f"{html.escape(_printable(box.text))}</text>"
        )
        if box.note:
            out.append(
                f'<text x="{box.x + box.width + 4:g}" y="{box.y + box.height - 6:g}" '
                f'font-size="10" fill="#777777">{html.escape(box.note)}</text>'
            )
    return "\n".join([*out, "</svg>"]) + "\n"


def _printable(text: str) -> str:
    """Without characters that XML does not allow."""
    return "".join(c if c.isprintable() else " " for c in text)


def _in_latin(text: str) -> str:
    """In the characters of Pillow's own font: accents are left out, fractions written out."""
    plain = unicodedata.normalize("NFKD", _printable(text).translate(DASHES))
    return "".join(c for c in plain.replace("\u2044", "/") if c.isascii())


def png(drawn: Layout) -> Image.Image:
    """The picture in pixels; its upper part where it would be too high for a picture."""
    picture = Image.new("RGB", (WIDTH, min(drawn.height, 16_000)), "#ffffff")
    pen = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(SIZE), ImageFont.load_default(10)
    for arrow in drawn.arrows:
        left = arrow.x - arrow.depth
        points = []
        for i in range(25):
            t = i / 24
            a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
            points.append(
                (
                    a * arrow.x + (b + c) * left + d * (arrow.x - 5),
                    (a + b) * arrow.y + (c + d) * arrow.to,
                )
            )
        pen.line(points, fill=arrow.colour, width=2)
        tip = (arrow.x, arrow.to)
        pen.polygon([tip, (tip[0] - 7, tip[1] - 4), (tip[0] - 7, tip[1] + 4)], fill=arrow.colour)
    for box in drawn.boxes:
        pen.rounded_rectangle(
            (box.x, box.y, box.x + box.width, box.y + box.height), 4, fill=box.fill
        )
        pen.text((box.x + 7, box.y + 3), _in_latin(box.text), fill=box.ink, font=font)
        if box.note:
            pen.text(
                (box.x + box.width + 4, box.y + 5), _in_latin(box.note), fill="#777777", font=small
            )
    return picture


# --- the coverage report --------------------------------------------------------------------------

_STYLE = """body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
pre{white-space:pre-wrap;font:inherit;border:1px solid #ddd;padding:1em;border-radius:6px}
mark{border-radius:3px;padding:0 2px;color:#222}mark.action{color:#fff}
mark.none{outline:2px dashed #c00}table{border-collapse:collapse}td,th{padding:2px 12px 2px 0;
text-align:left;vertical-align:top}td.n{text-align:right}details{margin:.5em 0}"""


def report(qa: QASet, title: str, missing: Mapping[str, Any]) -> str:
    """A page: the text with its nodes in colour and their questions, counts, what is missing."""
    about: dict[str, list[QAPair]] = {}
    for pair in qa.pairs:
        for node in pair.nodes:
            about.setdefault(node, []).append(pair)
    kinds = Counter(pair.kind for pair in qa.pairs)
    nodes = Counter(n["kind"] for n in qa.graph["nodes"])
    asked = Counter(n["kind"] for n in qa.graph["nodes"] if n["id"] in about)
    rows = "".join(
        f"<tr><td>{html.escape(kind)}</td><td class=n>{asked[kind]} of {count}</td></tr>"
        for kind, count in nodes.items()
    )
    types = "".join(
        f"<tr><td>{html.escape(kind)}</td><td class=n>{count}</td></tr>"
        for kind, count in kinds.most_common()
    )
    texts = {n["id"]: n["text"] for n in qa.graph["nodes"]}
    notes = [*missing.get("notes", ())]
    notes += [f"no question is about {n}: {texts[n]}" for n in missing.get("nodes", ())]
    edges = qa.graph["edges"]
    notes += [
        f"no question is about the edge {edges[i]['source']} {edges[i]['role']} "
        f"{edges[i]['target']}" for i in missing.get("edges", ())
    ]  # fmt: skip
    notes += [f"not a step or material: {s['text']}" for s in qa.graph.get("skipped", ())]
    listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes) or "<li>nothing</li>"
    pairs = "".join(
        f"<tr><td>{html.escape(p.kind)}</td><td>{html.escape(p.question)}</td>"
        f"<td>{html.escape(p.answer)}</td></tr>"
        for p in qa.pairs
    )
    name = html.escape(title)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title>"
        f"<style>{_STYLE}{_colours()}</style><h1>{name}</h1>"
        f"<p>{len(qa.pairs)} pairs; {qa.coverage:.0%} of {len(qa.graph['nodes'])} nodes asked "
        f"about. Hold the mouse over a coloured part to see its questions.</p>"
        f"<pre>{_marked(qa, about)}</pre><h2>Nodes</h2><table>{rows}</table>"
        f"<h2>Missing</h2><ul>{listed}</ul><h2>Types</h2><table>{types}</table>"
        f"<details><summary>All pairs</summary><table>{pairs}</table></details></html>\n"
    )


def _colours() -> str:
    return "".join(f"mark.{kind}{{background:{colour}}}" for kind, colour in COLOURS.items())


def _marked(qa: QASet, about: Mapping[str, Sequence[QAPair]]) -> str:
    """The text in HTML, its nodes (steps aside) marked; nodes do not overlap."""
    spans = [n for n in qa.graph["nodes"] if n["kind"] != "step"]
    out, at = [], 0
    for node in sorted(spans, key=lambda n: (n["start"], n["end"])):
        if node["start"] < at:
            continue
        questions = "\n".join(f"{p.question} {p.answer}" for p in [*about.get(node["id"], ())][:12])
        out.append(html.escape(qa.text[at : node["start"]]))
        kind = node["kind"] if node["id"] in about else f"{node['kind']} none"
        out.append(
            f'<mark class="{kind}" title="{html.escape(questions, quote=True)}">'
            f"{html.escape(qa.text[node['start'] : node['end']])}</mark>"
        )
        at = node["end"]
    return "".join([*out, html.escape(qa.text[at:])])


def write(qa: QASet, folder: Path, title: str, missing: Mapping[str, Any]) -> list[Path]:
    """``graph.svg``, ``graph.png`` and ``coverage.html``."""
    drawn = layout(qa.graph)
    (folder / "graph.svg").write_text(svg(drawn), "utf-8")
    png(drawn).save(folder / "graph.png")
    (folder / "coverage.html").write_text(report(qa, title, missing), "utf-8")
    return [folder / name for name in ("graph.svg", "graph.png", "coverage.html")]
