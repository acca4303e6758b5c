"""Make every question that a how-to supports, and let a reader learn them."""

import zoo

TEXT = """Pancakes
- 2 eggs
- 150 g flour
- 300 ml milk
1. Whisk the eggs and the milk in a large bowl.
2. Sift in the flour and stir until the batter is smooth.
3. Let the batter rest for 20 minutes.
4. Heat a pan and fry each pancake for 2 minutes on each side.
"""

model = zoo.load("graph-qa")
made = model.generate(TEXT)
print(f"{len(made)} questions about {made.coverage:.0%} of the graph's nodes, for example")
for kind in ("amount", "where", "until", "howlong", "order"):
    pair = next(p for p in made.pairs if p.kind == kind)
    print(f"  {pair.question}  {pair.answer}")

reader = model.train_reader([made])
for when, who in (("before", model), ("after", reader)):
    right = sum(who.answer(p.question, TEXT) == p.answer for p in made.pairs) / len(made)
    print(f"{when:7} the reader answers {100 * right:.1f} % of them")
print("How long does the batter rest?", reader.answer("How long does the batter rest?", TEXT))
