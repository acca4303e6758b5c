"""Model cards: rendered from a registry entry and ``results.json``, and checked without a network.

A card is ``hub_cards/<model>/README.md``, exactly as it goes to the Hub. Nothing in it is typed
twice: facts come from the registry, prose from ``about.md`` next to the card, numbers (those in the
prose too) from ``results.json``, which names the command that makes them again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import about, bench, experiment
from .about import About
from .api import train_command
from .entry import Entry
from .errors import InputError, NotReadyError, ZooError

PIPELINE_TAGS: Mapping[str, str | None] = {
    "SRModel": "image-to-image",
    "VLAligner": "zero-shot-image-classification",
    "Quantizer": "text-generation",
    "DataSelector": None,  # the Hub has no tag for choosing data
    "Detector": "object-detection",
    "QAGenerator": "question-answering",
}
USE: Mapping[str, str] = {
    "SRModel": 'model.upscale("small.png").save("large.png")',
    "VLAligner": "model.align(images, texts).similarity(images, texts)",
    "Quantizer": 'model.quantize("./my-language-model").save_pretrained("./quantized")',
    "DataSelector": "model.fit(train, target).select(fraction=0.5)",
    "Detector": 'model.detect("photo.jpg")',
    "QAGenerator": "model.generate(text).pairs",
}
"""The third of the three lines that show how to use a model of each interface."""
AT_ONCE: Mapping[str, str] = {
    "VLAligner": 'model.predict_proba(["photo.jpg"], ["a beach", "a dog"])',
}
"""The same of a model that has weights, and so needs no fit, where that makes a difference."""
# The Hub's identifiers of the licences that models here may have; add others here.
LICENSES = frozenset(
    "apache-2.0 mit cc0-1.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 bsd-3-clause unlicense openrail "
    "openrail++ creativeml-openrail-m other".split()
)
NO_PROSE = About()
_PLACEHOLDER = re.compile(
    r"\b(TODO|TBD|FIXME|XXX|lorem ipsum)\b|\{\{|<(your|insert)[^>]*>", re.IGNORECASE
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def render(
    entry: Entry,
    records: Sequence[Mapping[str, Any]],
    prose: About = NO_PROSE,
) -> str:
    """The card's whole text.

    ``records``: what was measured (``bench.records``). ``prose``: the author's Markdown.
    """
    from huggingface_hub import ModelCardData

    card = entry.card
    data = ModelCardData(
        license=(entry.license.get("weights") or entry.license.get("code") or "other").lower(),
        library_name="zoo",
        pipeline_tag=PIPELINE_TAGS[entry.interface],
        base_model=_hub_base(entry),
        datasets=[d.name for d in card.data if _HUB_ID.fullmatch(d.name)] or None,
        tags=[
            "zoo",
            entry.interface,
            *([entry.method] if entry.method else []),
            *_paper_tag(entry),
        ],
        model_name=entry.name,
        eval_results=_eval_results(entry, records) or None,
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {entry.name}", _first_line(entry)]
    if prose.text:
        parts.append(prose.text)
    if card.picture and prose.caption:
        parts.append(f"![{prose.caption}]({card.picture})\n\n{prose.caption}")
    parts += ["## Use", f"```python\n{usage(entry)}\n```"]
    if entry.extra:
        parts.append(f"Needs `pip install '{entry.distribution}[{entry.extra}]'`.")
    if prose.limits:
        parts += [f"## {about.LIMITS}", "\n".join(f"- {limit}" for limit in prose.limits)]
    parts += ["## Training", _training(entry)]
    parts += ["## What was measured", _measured(entry, records)]
    parts += ["## Licence and source", _source(entry)]
    return "\n\n".join(parts) + "\n"


def render_saved(
    entry: Entry,
    manifest: Mapping[str, Any],
    repo: str,
    *,
    license: str | None = None,
    data: Sequence[str] = (),
) -> str:
    """The card of a user's saved model: what ``zoo.json`` knows, and what the user states.

    ``manifest``: the parsed ``zoo.json``. ``license``: the Hub's identifier of the licence.
    ``data``: what the model was trained on, in the user's words. Origin, licence, data, picture and
    numbers of the registry entry are left out: they belong to another model.
    """
    from huggingface_hub import ModelCardData

    interface = manifest["interface"]
    bases = manifest["bases"]
    hubs = [b["id"] for b in bases.values() if _HUB_ID.fullmatch(str(b.get("id", "")))]
    info = ModelCardData(
        license=license,
        library_name="zoo",
        pipeline_tag=PIPELINE_TAGS.get(interface) if interface else None,
        base_model=hubs or None,
        tags=["zoo", *filter(None, [interface, entry.method]), *_paper_tag(entry)],
        model_name=repo,
    )
    kind = interface or manifest["kind"]
    facts = [f"- Method: {entry.method or entry.name}, by zoo {manifest['zoo']}"]
    facts += [f"- {name}: {_plain(str(value))}" for name, value in manifest["options"].items()]
    facts += [f"- Base {name}: {_plain(str(base.get('id')))}" for name, base in bases.items()]
    facts += [f"- {path}: {f['size']:,} bytes" for path, f in sorted(manifest["files"].items())]
    use = f"\n{USE[interface]}" if interface else ""
    parts = [
        f"---\n{info.to_yaml()}\n---",
        f"# {repo}",
        f"A {kind} made with zoo's `{entry.name}` and saved by its user.",
        "\n".join(facts),
        f'## Use\n\n```python\nimport zoo\nmodel = zoo.load("{repo}"){use}\n```',
    ]
    if entry.extra:
        parts.append(f"Needs `pip install '{entry.distribution}[{entry.extra}]'`.")
    if data:
        parts.append("## Training data\n\n" + "\n".join(f"- {_plain(d)}" for d in data))
    if license:
        parts.append(f"## Licence\n\n{_plain(license)}")
    return "\n\n".join(parts) + "\n"


def usage(entry: Entry) -> str:
    """Three lines that use the model; a test runs them."""
    what = f"./runs/{entry.name}/model" if entry.status == "untrained" else entry.name
    needed = [n for n, b in entry.bases.items() if "build" in b.needed and b.default is None]
    base = ""
    if needed and entry.status != "untrained":  # a trained folder holds what it needs of its base
        base = (
            ', base="org/model"'
            if len(needed) == 1
            else f", base={dict.fromkeys(needed, 'org/model')}"
        )
    use = (AT_ONCE if entry.files else {}).get(entry.interface, USE[entry.interface])
    return f'import zoo\nmodel = zoo.load("{what}"{base})\n{use}'


def _first_line(entry: Entry) -> str:
    kind = {
        "tiny": "A **tiny variant trained by the project that ships it; not the paper's model**",
        "full": "The paper's size",
    }.get(entry.size or "", "A model")
    size = f", {entry.params / 1e6:.3g} M parameters" if entry.params else ""
    return f"{kind}{size}: {_plain(entry.summary)}."


def _training(entry: Entry) -> str:
    if entry.status == "untrained":
        return (
            "There are no trained weights of this size. Train them with:\n\n```console\n"
            f"$ {train_command(entry)}\n```"
        )
    lines = [f"- {_plain(d.name)} ({_plain(d.license)})" for d in entry.card.data]
    unsaid = "Not stated." if entry.files else "No training: the method has no weights of its own."
    text = "\n".join(lines) if lines else unsaid
    if entry.card.training:
        text += f"\n\nTrained by:\n\n```console\n$ {entry.card.training}\n```"
    return text


def _measured(entry: Entry, records: Sequence[Mapping[str, Any]]) -> str:
    if not records:
        return "Nothing has been measured yet."
    return "\n\n".join(_record(entry, record) for record in records)


def _record(entry: Entry, results: Mapping[str, Any]) -> str:
    data = "; ".join(f"{d['name']} ({d['size']}, {d['license']})" for d in results["data"])
    seeds = ", ".join(map(str, results["seeds"])) or "none"
    tables = [bench.table_text(results)]
    if results["claims"]:
        tables += [experiment.DECIDED, bench.claims_text(results)]
    title = [f"### {results['part'].replace('-', ' ').capitalize()}"] if "part" in results else []
    parts = title + [table.replace("<", "&lt;") for table in tables]
    parts.append(
        f"Measured by the command below on {results['hardware']}, {results['date']}, at "
        f"`{results['code'][:12]}`, in {results['seconds']:.0f} s. "
        f"Data: {_plain(data) or 'none'}. Seeds: {seeds}.\n\n"
        f"```console\n$ {results['command']}\n```"
    )
    more = [name for name in results["pictures"] if name != entry.card.picture]
    parts += [f"![{Path(name).stem}]({name})" for name in more]
    return "\n\n".join(parts)


def _source(entry: Entry) -> str:
    licenses = ", ".join(f"{_plain(name)} ({what})" for what, name in entry.license.items())
    text = f"Licence: {licenses}." if licenses else ""
    if entry.paper.get("title"):
        where = f" ({_plain(entry.paper['id'])})" if entry.paper.get("id") else ""
        text += f"\n\nMethod: {_plain(entry.paper['title'])}{where}. An independent implementation."
    return text.strip()


def _hub_base(entry: Entry) -> str | None:
    defaults = (spec.default for spec in entry.bases.values())
    return next((default for default in defaults if default and "/" in default), None)


def _paper_tag(entry: Entry) -> list[str]:
    kind, _, number = entry.paper.get("id", "").partition(":")
    return [f"arxiv:{number}"] if kind.lower() == "arxiv" else []


def _eval_results(entry: Entry, records: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Those of the first record, which is about quality."""
    from huggingface_hub import EvalResult

    if not records or entry.name not in records[0]["table"]:
        return []
    results = records[0]
    names = ", ".join(d["name"] for d in results["data"])
    return [
        EvalResult(
            task_type=PIPELINE_TAGS[entry.interface] or "other",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", names.lower()).strip("-"),
            dataset_name=names,
            metric_type=re.sub(r"[^a-z0-9]+", "-", metric.lower()).strip("-"),
            metric_name=metric,
            metric_value=round(value["mean"], 4),
        )
        for metric, value in results["table"][entry.name].items()
    ]


def _plain(text: str) -> str:
    """Registry text, escaped: nothing in it becomes markup, HTML or the text of a link."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", text)


# --- a card on disk -------------------------------------------------------------------------------


def write(entry: Entry, folder: Path) -> Path:
    """Render the card into ``folder`` (``hub_cards/<model>``), whole or not at all."""
    from .weights import atomic_file

    if entry.status == "planned":
        raise NotReadyError(f"{entry.name} is planned; it has no card yet.")
    records = bench.records(folder)
    text = render(entry, records, about.read(folder, records))
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / "README.md") as temporary:
        temporary.write_text(text, "utf-8")
    return folder / "README.md"


def faults(entry: Entry, folder: Path) -> list[str]:
    """The faults of the card in ``folder``, found without using the network."""
    path = folder / "README.md"
    if not path.is_file():
        return [f"there is no {path}; write it with `zoo card {entry.name}`"]
    text = path.read_text("utf-8")
    try:
        records = bench.records(folder)
        prose = about.read(folder, records)
        wanted = render(entry, records, prose)
    except ZooError as error:
        return [str(error)]
    found = []
    if text != wanted:
        found.append(
            f"stale: registry, {about.FILE} or results have changed; run `zoo card {entry.name}`"
        )
    found += _metadata_faults(text)
    found += [f"placeholder: {m[0]!r}" for m in _PLACEHOLDER.finditer(text)]
    for number, said in about.typed_numbers(f"{entry.summary}\n{about.raw(folder)}"):
        found.append(
            f"number without a source: {number!r} in {said[:60]!r}; "
            "numbers belong to results.json: {{row | metric}} or {{claim.value}}"
        )
    if entry.card.picture and not (folder / entry.card.picture).is_file():
        found.append(f"the picture {entry.card.picture} is missing")
    if entry.card.picture and not prose.caption:
        found.append(f"it does not say what its picture shows ({about.FILE}: ## {about.PICTURE})")
    if entry.status == "ready" and not prose.limits:
        found.append(
            f"it does not say what the model is not good for ({about.FILE}: ## {about.LIMITS})"
        )
    if entry.files and not entry.card.data:
        found.append("it does not say what the weights were trained on (card: data)")
    return found + [fault for record in records for fault in _record_faults(entry, record)]


def _metadata_faults(text: str) -> list[str]:
    from huggingface_hub import ModelCard

    try:
        data = ModelCard(text).data.to_dict()
    except (
        Exception
    ) as error:  # whatever the YAML reader or the Hub's client raises: it is not valid
        return [f"the metadata block cannot be read: {' '.join(str(error).split())}"]
    found = []
    if data.get("license") not in LICENSES:
        found.append(f"licence {data.get('license')!r} is not one of the Hub's that are used here")
    if data.get("pipeline_tag") not in PIPELINE_TAGS.values():
        found.append(f"pipeline_tag {data.get('pipeline_tag')!r} is unknown")
    if data.get("library_name") != "zoo":
        found.append(f"library_name is {data.get('library_name')!r}, not 'zoo'")
    return found


def _record_faults(entry: Entry, results: Mapping[str, Any]) -> list[str]:
    found, file = [], bench.file_of(results)
    if results["model"] != entry.name:
        found.append(f"{file} is about {results['model']!r}")
    if results["code"].endswith("+"):
        found.append(f"{file} was made with uncommitted changes; run the benchmark again")
    measured = results["weights"]
    current = {f.path: f.sha256 for f in entry.files if f.path.endswith(".safetensors")}
    if any(measured.get(path) != digest for path, digest in current.items()):
        found.append(f"{file} was measured with other weights; run the benchmark again")
    if not results["command"]:
        found.append(f"{file} names no command")
    return found


def require_valid(entry: Entry, folder: Path) -> None:
    """Raise InputError with every fault of a card."""
    wrong = faults(entry, folder)
    if wrong:
        raise InputError(f"{folder / 'README.md'}: " + "; ".join(wrong) + ".")
