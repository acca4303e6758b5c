"""graph-qa reads procedures: lists, Markdown, HTML, tables, prose, and what is none."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo_graph_qa import quantities
from zoo_graph_qa.text import Part, Procedure, read
from zoo_graph_qa.words import command, content, kinds, lemma, participle, tokenize

from zoo.errors import InputError

CAKE = ["Mix the flour.", "Bake it for 5 minutes."]


def steps(text: str, **options: bool) -> list[str]:
    found = read(text, **options)
    return [found.of(step) for step in found.steps]


def materials(text: str) -> list[str]:
    found = read(text)
    return [found.of(line) for line in found.materials]


@pytest.mark.parametrize(
    "text",
    [
        "1. Mix the flour.\n2. Bake it for 5 minutes.",
        "1) Mix the flour.\n2) Bake it for 5 minutes.",
        "Step 1: Mix the flour.\nStep 2: Bake it for 5 minutes.",
        "(1) Mix the flour.\n(2) Bake it for 5 minutes.",
        "- Mix the flour.\n- Bake it for 5 minutes.",
        "• Mix the flour.\r\n• Bake it for 5 minutes.\r\n",
        "* [ ] Mix the flour.\n* [x] Bake it for 5 minutes.",
        "Mix the flour. Bake it for 5 minutes.",
        "Mix the flour.\n\nBake it for 5 minutes.",
        "# Cake\n\n## Directions\n\nMix the flour. Bake it for 5 minutes.",
        "Cake\n====\n\n1. Mix the flour.\n2. Bake it for 5 minutes.",
        "| no | what |\n|---|---|\n| 1 | Mix the flour. |\n| 2 | Bake it for 5 minutes. |",
        "<ol><li>Mix the flour.</li><li>Bake it for 5 minutes.</li></ol>",
        "<p>Mix the flour.</p>\n<p>Bake it for 5 minutes.</p><!-- Fry it. -->",
        "1️⃣ Mix the flour.\n2️⃣ Bake it for 5 minutes.",
        "> 1. Mix the flour.\n> 2. Bake it for 5 minutes.",
    ],
)
def test_every_kind_of_list(text: str) -> None:
    assert steps(text) == CAKE


def test_sections() -> None:
    text = (
        "---\ntags: [x]\n---\n# Cake\n\nMy favourite.\n\n## Ingredients\n\n- 2 eggs\n- flour\n\n"
        "For the icing:\n- sugar\n\n## Method\n\n1. Mix the flour.\n2. Bake it for 5 minutes.\n\n"
        "## Notes\n\nKeeps for days.\n"
    )
    found = read(text)
    assert found.title is not None
    assert found.of(found.title) == "Cake"
    assert materials(text) == ["2 eggs", "flour", "sugar"]
    assert steps(text) == CAKE
    skipped = [found.of(part) for part in found.skipped]
    assert {"My favourite.", "Keeps for days."} <= {*skipped}


@pytest.mark.parametrize(
    "text",
    [
        "Pan\n2 eggs\n\u00bd cup flour\nsalt to taste\n1) Mix them.\n2) Bake it.",
        "Pancakes\n\n2 eggs\n1/2 cup flour\nsalt to taste\n\nMix them all. Bake it.",
        "2 eggs\n1/2 cup flour\nsalt to taste\nMix them all.\n\nDirections\nBake it.",
    ],
)  # fmt: skip
def test_amounts_above_the_steps_are_materials(text: str) -> None:
    """Neither heading nor bullets; a sentence among them is none."""
    found = read(text)
    materials = [found.of(part) for part in found.materials]
    assert len(materials) == 3
    assert materials[0] == "2 eggs"
    assert materials[2] == "salt to taste"
    assert found.of(found.steps[-1]) == "Bake it."


def test_entities_are_read_and_keep_their_places() -> None:
    text = "<ol><li>Steep for 3&nbsp;minutes at 95&deg;C.</li><li>Salt &amp; serve.</li></ol>"
    found = read(text)
    assert len(found.clean) == len(text)
    words = [" ".join(found.clean[p.start : p.end].split()) for p in found.steps]
    assert words == ["Steep for 3 minutes at 95 \u00b0C.", "Salt & serve."]


def test_a_table_keeps_all_cells_of_a_row_and_no_header() -> None:
    text = (
        "| no | what | time |\n|---|---|---|\n| 1 | Drain the oil | 15 minutes |\n"
        "| 2 | Close the plug | |\n"
    )
    assert steps(text) == ["Drain the oil | 15 minutes", "Close the plug"]
    assert read(text).numbers == (1, 2)


@pytest.mark.parametrize("gap", ["\n", "\n\n"])
def test_a_title_above_sentences_is_no_step(gap: str) -> None:
    found = read(f"Lemon cake{gap}Heat the oven.\nMix the batter!")
    assert found.title is not None
    assert found.of(found.title) == "Lemon cake"
    assert len(found.steps) == 2
    assert read("Heat the oven\nMix the batter").title is None


def test_numbers_in_an_introduction_are_no_materials() -> None:
    found = read("30 Minute Chili\n\nThis serves 4.\nUse 2 pans.\n\n1. Chop onions.\n2. Fry them.")
    assert not found.materials
    assert len(found.steps) == 2


def test_a_list_above_numbered_steps_is_of_materials() -> None:
    text = "Cake\n- 2 eggs\n- flour\n1. Mix the flour.\n2. Bake it for\n5 minutes."
    assert materials(text) == ["2 eggs", "flour"]
    assert steps(text) == [CAKE[0], "Bake it for\n5 minutes."]


def test_abbreviations_and_numbers_end_no_sentence() -> None:
    text = "Cook for approx. 5 min. on low heat. Add 1.5 cups of milk."
    assert len(steps(text)) == 2


def test_places_are_those_of_the_given_text() -> None:
    """Tags, marks and emoji are blanked out, not removed."""
    text = "<p>🍰 <b>Mix</b> the **flour** &amp; salt.</p><p>Bake it.</p>"
    found = read(text)
    assert len(found.clean) == len(text)
    for part in found.steps:
        assert text[part.start : part.end] == found.of(part)
    assert "Mix" in found.of(found.steps[0])
    assert "<b>" not in found.clean


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = read(text, force=True)
    except InputError:
        return
    assert len(found.clean) == len(text)
    parts = [*found.materials, *found.steps, *found.skipped]
    assert all(0 <= p.start < p.end <= len(text) for p in parts)
    ordered = sorted(found.steps, key=lambda p: p.start)
    assert [*found.steps] == ordered
    assert all(a.end <= b.start for a, b in itertools.pairwise(ordered))


@pytest.mark.parametrize("text", ["", "   \n\t", "?!…", "🙂🙂"])
def test_text_without_words_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no steps found: the text has no words"):
        read(text)


def test_only_a_title_is_one_step() -> None:
    """A single line cannot be told from a step."""
    assert steps("Apple pie") == ["Apple pie"]
    with pytest.raises(InputError, match="no steps found: looked for numbered"):
        read("# Apple pie\n\n## Ingredients\n\n## Notes\n\nVery good.")


GERMAN = (
    "1. Das Mehl mit dem Zucker in einer Schüssel verrühren und die Eier dazugeben.\n"
    "2. Den Teig bei mittlerer Hitze vierzig Minuten backen, bis er goldbraun ist.\n"
    "3. Den Kuchen aus dem Ofen nehmen und abkühlen lassen, danach mit Puderzucker bestäuben."
)


def test_other_languages_are_refused_unless_forced() -> None:
    with pytest.raises(InputError, match="does not look English"):
        read(GERMAN)
    assert len(steps(GERMAN, force=True)) == 3
    with pytest.raises(InputError, match="does not look English"):
        read("将面粉和糖混合在一个大碗里。加入鸡蛋搅拌均匀。在烤箱里烤四十分钟直到金黄色。")
    assert len(steps("Sauté the jalapeños. Deglaze with crème fraîche.")) == 2


# --- words ----------------------------------------------------------------------------------------


def test_tokens() -> None:
    found = [
        t.text for t in tokenize("Sauté 1 1/2 cups (½ lb) at 180°C, don't over-mix 10-15 min.")
    ]
    assert found == [
        "Sauté", "1", "1/2", "cups", "(", "½", "lb", ")", "at", "180", "°C", ",", "don't",
        "over-mix", "10", "-", "15", "min", ".",
    ]  # fmt: skip


def test_lemmas_and_kinds() -> None:
    assert [lemma(w) for w in ("eggs", "baked", "qwertzs")] == ["egg", "bake", "qwertz"]
    given = ("stirring", "baking", "slices", "bake", "taped", "bread")
    assert [command(w) for w in given] == ["stir", "bake", "slice", "bake", "tape", "bread"]
    assert "v" in kinds("bake")
    assert "V" in kinds("baking")
    assert kinds("xyzzy") == ""
    assert content("Put the two eggs into it") == ["put", "egg"]


# --- quantities -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "name", "amount", "size"),
    [
        ("2 (16 ounce) cans black beans, drained", "black beans", "2", "16 ounce"),
        ("1 1/2 cups of sugar", "sugar", "1 1/2 cups", None),
        ("½ tsp. salt", "salt", "½ tsp", None),
        ("3 eggs", "eggs", "3", None),
        ("salt", "salt", None, None),
        ("a pump", "pump", "a", None),
        ("4 screws, 60 mm", "screws", "4", "60 mm"),
        ("10-15 g yeast (dry)", "yeast", "10-15 g", None),
    ],
)
def test_materials(line: str, name: str, amount: str | None, size: str | None) -> None:
    found = quantities.material(line, Part(0, len(line)))

    def said(part: Part | None) -> str | None:
        return None if part is None else line[part.start : part.end]

    assert (said(found.name), said(found.amount), said(found.size)) == (name, amount, size)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "350 degrees F (175 degrees C)",
            {"Fahrenheit": "350 degrees F", "Celsius": "175 degrees C"},
        ),
        ("180°C (360° F)", {"Celsius": "180°C", "Fahrenheit": "360° F"}),
        ("400g (15 oz)", {"grams": "400g", "ounces": "15 oz"}),
        ("180 °C", {}),
        ("5 minutes", {}),
    ],
)
def test_alternates(text: str, expected: dict[str, str]) -> None:
    found = quantities.alternates(text, 0, len(text))
    assert {unit: text[p.start : p.end] for unit, p in found} == expected


def test_a_procedure_knows_its_words() -> None:
    found = Procedure("ab", "ab", None, (), (Part(0, 1),))
    assert found.of(found.steps[0]) == "a"


@pytest.mark.parametrize(
    ("verb", "done"),
    [
        ("bake", "baked"), ("stir in", "stirred in"), ("dry", "dried"), ("cut", "cut"),
        ("take off", "taken off"), ("mix", "mixed"), ("boil", "boiled"), ("spray", "sprayed"),
    ],
)  # fmt: skip
def test_participles(verb: str, done: str) -> None:
    assert participle(verb) == done
