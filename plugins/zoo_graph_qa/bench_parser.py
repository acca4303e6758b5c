"""The part "parser": annotations, exhaustiveness, the how-tos, speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zoo.experiment import Bars, Book, draw, load, take_turns
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Data, Results

from .candidates import Candidates
from .corpora import TYPES, Labelled, plain
from .drawing import layout, png
from .evaluate import Item, arcs_of, gold_arcs, howtos, scored, spans
from .flow import linked
from .model import GraphQA, ProcedureQA
from .parse import Parser, gold_spans
from .questions import Controls, ask
from .semantic import retrieved
from .train import readable
from .worlds import TEST, Corpora, kept_parser

CRF, GOLD, FLOW = "parser", "parser, gold spans", "flow"
PREVIOUS, NEAREST = "always the action before", "the action before, if no object is named"
OURS, RETRIEVAL = "graph-qa", "most similar sentence (TF-IDF)"
SPANS, ARCS, PLAIN_ARCS, LINKS = "span F1", "labelled arc F1", "arc F1", "link F1"
NODES, EDGES = "nodes asked about, %", "edges asked about, %"
MILLIS, NEW, KNOWN = (
    "CPU-ms to parse and ask", "CPU-ms of an answer, new text", "CPU-ms of an answer, known text",
)  # fmt: skip
SHOWN = "apple-strudel.md"
FLOORS = {SPANS: 87.0, ARCS: 76.0, LINKS: 80.0}
MINUTE, CORES, WANTED = 60_000, 2, 4_000
"""Milliseconds, cores, and procedures a minute on them."""


def measure(request: BenchRequest, corpora: Corpora, work: Path) -> Results:
    """Parser, exhaustiveness, how-tos and speed of the bundled model."""
    book = Book(less_is_better=lambda column: column.startswith("CPU"))
    seeds = [request.seed + i for i in range(1 if request.quick else 3)]
    for seed in seeds:
        parsing(book, corpora, work, seed, request.quick)
    model: GraphQA = load(request)
    exhaustive(book, corpora, model)
    other_domain(book, model)
    speed(book, corpora, model, request.quick)
    claim(book, [*seeds])
    pictures = [] if request.quick else [_graph(request.out, model), _picture(request.out, book)]
    data = [
        Data("CookDial", "MIT", f"{len(corpora.recipes)} recipes, {TEST} of them to test"),
        Data("RISeC", "MIT", f"{len(corpora.linked['test'])} recipes to test"),
        Data("public-domain recipes", "Unlicense", "400 recipes"),
        Data("how-tos of this project", "Apache-2.0", "20 texts, 300 questions"),
    ]
    return book.results(data=data, seeds=seeds, pictures=pictures)


def parsing(book: Book, corpora: Corpora, work: Path, seed: int, quick: bool) -> None:
    """Span and arc F1 on recipes that the parser has not seen; links on RISeC's own test part."""
    order = corpora.shuffled()
    held = [corpora.recipes[i] for i in order[seed * TEST : (seed + 1) * TEST]]
    names = {r.name for r in held}
    rest = [r for r in corpora.recipes if r.name not in names]
    links = corpora.linked["train"] + corpora.linked["dev"]
    parser = kept_parser(work, rest, links, seed, quick)
    predicted = [Candidates(parser.graph(r.procedure)) for r in held]
    given = [Candidates(parser.graph(r.procedure, gold_spans(r))) for r in held]
    gold = [{(s.kind, s.start, s.end) for s in r.spans} for r in held]
    found = [
        {(n.kind, n.start, n.end) for n in c.graph.nodes if n.kind in TYPES} for c in predicted
    ]
    book.add(CRF, SPANS, spans(found, gold), seed)
    for kind in TYPES:
        one = [[{x for x in row if x[0] == kind} for row in side] for side in (found, gold)]
        book.add(CRF, f"{SPANS}, {kind}", spans(*one), seed)
    wanted = [gold_arcs(r) for r in held]
    for row, made in ((CRF, predicted), (GOLD, given)):
        arcs = [arcs_of(c) for c in made]
        book.add(row, ARCS, _share(arcs, wanted), seed)
        book.add(row, PLAIN_ARCS, _share(_unlabelled(arcs), _unlabelled(wanted)), seed)
    flow(book, corpora.linked["test"], parser, seed)


def _unlabelled(arcs: Sequence[set[tuple[int, int, str]]]) -> list[set[tuple[int, int, str]]]:
    return [{(a, b, "") for a, b, _ in row} for row in arcs]


def _share(
    found: Sequence[set[tuple[int, int, str]]], gold: Sequence[set[tuple[int, int, str]]]
) -> float:
    right = sum(len(a & b) for a, b in zip(found, gold, strict=True))
    return 200 * right / max(1, sum(map(len, found)) + sum(map(len, gold)))


def flow(book: Book, recipes: Sequence[Labelled], parser: Parser, seed: int) -> None:
    """F1 of links from an action to those whose product it uses, with RISeC's own spans."""
    rows: dict[str, list[tuple[set[int], set[int]]]] = {FLOW: [], PREVIOUS: [], NEAREST: []}
    for recipe in recipes:
        numbers, right = linked(recipe)
        objects = _named(recipe)
        for i, (made, gold) in enumerate(zip(parser.links(numbers), right, strict=True)):
            wanted = {k for k in range(1, len(gold)) if gold[k]}
            rows[FLOW].append(({i - j for j, _ in made}, wanted))
            rows[PREVIOUS].append(({1} if i else set(), wanted))
            rows[NEAREST].append(({1} if i and not objects[i] else set(), wanted))
    for name, pairs in rows.items():
        right_ones = sum(len(a & b) for a, b in pairs)
        total = sum(len(a) + len(b) for a, b in pairs)
        book.add(name, LINKS, 200 * right_ones / total, seed)


def _named(recipe: Labelled) -> list[bool]:
    """For each action in the order of the text: does it have an object?"""
    owners = {a.head for a in recipe.arcs if a.role == "patient"}
    actions = [n for n, s in enumerate(recipe.spans) if s.kind == "action"]
    inside = [
        n
        for p in recipe.procedure.steps
        for n in sorted(actions, key=lambda n: recipe.spans[n].start)
        if p.start <= recipe.spans[n].start < p.end
    ]
    return [n in owners for n in inside]


def exhaustive(book: Book, corpora: Corpora, model: GraphQA) -> None:
    """Are all nodes and edges asked about: annotated graphs, and parsed ones of 400 recipes?"""
    parser = model.parser
    annotated = [parser.graph(r.procedure, gold_spans(r)) for r in corpora.recipes]
    parsed = [parser.graph(p) for p in readable(plain(corpora.folder))]
    for name, graphs in (("annotated graphs", annotated), ("parsed graphs", parsed)):
        nodes = edges = asked_nodes = asked_edges = pairs = 0
        for graph in graphs:
            made = ask(graph, Controls(paraphrases=1))[1]
            pairs += len(made)
            nodes += len(graph.nodes)
            edges += len(graph.edges)
            asked_nodes += len({n for p in made for n in p.nodes})
            asked_edges += len({p.edge for p in made} - {None})
        book.add(name, NODES, 100 * asked_nodes / nodes)
        book.add(name, EDGES, 100 * asked_edges / edges)
        book.add(name, "pairs for a procedure", pairs / len(graphs))


def other_domain(book: Book, model: GraphQA) -> None:
    """The bundled reader on the how-tos, none of which it was trained on; EM of each question."""
    texts, items = howtos()
    lines = {}
    for i, text in enumerate(texts):
        graph = model.graph(text)
        lines[i] = [n.text for n in graph.nodes if n.kind in ("step", "material")]
    answers = {OURS: told(model, texts, items), RETRIEVAL: retrieved(lines, items)}
    for row, said in answers.items():
        for kind, numbers in scored(items, said).items():
            for metric, value in numbers.items():
                book.add(row, f"how-tos, {kind}: {metric}", value)


def told(model: GraphQA, texts: Sequence[str], items: Sequence[Item]) -> list[str]:
    """The model's answers."""
    found = [""] * len(items)
    for number, text in enumerate(texts):
        mine = [i for i, item in enumerate(items) if item.about == number]
        if not mine:
            continue
        asked = [(items[i].question, None if (s := items[i].step) is None else s + 1) for i in mine]
        for i, answer in zip(mine, model.explain_all(asked, text), strict=True):
            found[i] = answer.text
    return found


def speed(book: Book, corpora: Corpora, model: GraphQA, quick: bool) -> None:
    """CPU-milliseconds of one thread."""
    texts = plain(corpora.folder)[: 20 if quick else 100]
    question = "How long should I cook it?"
    step = {"i": 0}

    def generate() -> None:
        model.forget()
        for text in texts:
            made = model.generate(text)
            assert isinstance(made, ProcedureQA)

    def fresh() -> None:
        step["i"] += 1
        for text in texts[:20]:
            model.answer(question, f"{text}\n\nNo. {step['i']}")

    def known() -> None:
        for _ in range(20):
            model.answer(question, texts[0])

    model.answer(question, texts[0])
    turns = take_turns(
        {MILLIS: generate, NEW: fresh, KNOWN: known}, rounds=2 if quick else 5, patience=300
    )
    counts = {MILLIS: len(texts), NEW: 20, KNOWN: 20}
    for column, spent in turns.items():
        for i, seconds in enumerate(spent):
            book.add(OURS, column, 1000 * seconds / counts[column], i)


def claim(book: Book, seeds: Sequence[int]) -> None:
    """Floors and limits."""
    if len(seeds) > 1:
        book.claim(
            "parser",
            f"On recipes that it has not seen the parser reaches {FLOORS[SPANS]:g} % F1 of spans "
            f"and {FLOORS[ARCS]:g} % of labelled arcs.",
            book.better(CRF, FLOORS[SPANS], SPANS),
            book.better(CRF, FLOORS[ARCS], ARCS),
        )
        book.claim(
            "flow",
            f"It finds which earlier actions' products an action uses with {FLOORS[LINKS]:g} % F1 "
            "or more on RISeC's test recipes, more than the two simple rules.",
            book.better(FLOW, FLOORS[LINKS], LINKS),
            book.better(FLOW, [PREVIOUS, NEAREST], LINKS),
        )
    book.claim(
        "exhaustive",
        "Every node and every edge is asked about, of annotated graphs and of parsed ones.",
        *(
            book.not_worse(row, 100.0, column, margin=1e-9, test="counted")
            for row in ("annotated graphs", "parsed graphs")
            for column in (NODES, EDGES)
        ),
    )
    book.claim(
        "speed",
        f"{WANTED:,} procedures a minute or more on {CORES} cores.",
        book.better(OURS, MINUTE * CORES / WANTED, MILLIS),
        note="cores share no work: each procedure is made on one",
    )
    book.claim(
        "answers",
        "An answer takes less than 25 ms on a text not seen before, and less than 5 ms on another.",
        book.better(OURS, 25.0, NEW),
        book.better(OURS, 5.0, KNOWN),
    )


def _graph(out: Path, model: GraphQA) -> str:
    """The card's picture: the graph of a bundled recipe."""
    graph = model.graph((Path(__file__).parent / "recipes" / SHOWN).read_text("utf-8"))
    png(layout(graph.plain())).save(out / "graph.png")
    return "graph.png"


def _picture(out: Path, book: Book) -> str:
    tags = {kind: {"": book.mean(CRF, f"{SPANS}, {kind}")} for kind in TYPES}
    kinds = ("factoid", "next", "order", "unanswerable")
    answers = {
        row: {kind: book.mean(row, f"how-tos, {kind}: EM") for kind in kinds}
        for row in (OURS, RETRIEVAL)
    }
    draw(
        out / "parser.png",
        Bars(tags, "F1, %", "spans of recipes not seen"),
        Bars(answers, "exact match, %", "questions on how-tos"),
    )
    return "parser.png"
