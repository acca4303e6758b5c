"""From text to graph: the parser of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from .corpora import Labelled, Span
from .flow import Flow, candidates, describe, producers
from .graph import Graph, build
from .quantities import material
from .roles import Roles, RoleTables, attach
from .tagger import Decoder, Tagger
from .text import Procedure


class ParserModule(nn.Module):
    """What the parser has learned."""

    def __init__(self) -> None:
        super().__init__()
        self.tagger = Tagger()
        self.roles = Roles()
        self.flow = Flow()


class Parser:
    """A trained parser as arrays."""

    def __init__(self, module: ParserModule) -> None:
        self._decoder = Decoder(module.tagger)
        self._roles: RoleTables = module.roles.tables()
        self._flow: NDArray[np.float32] = module.flow.weight.detach().float().cpu().numpy()

    def links(self, numbers: NDArray[np.int64]) -> list[list[tuple[int, float]]]:
        """``flow.producers`` of actions with these candidates."""
        return producers(numbers, self._flow)

    def graph(self, procedure: Procedure, spans: Sequence[Sequence[Span]] | None = None) -> Graph:
        """The graph of a procedure; ``spans`` of each step instead of the tagger's."""
        steps = self._decoder.spans(procedure) if spans is None else spans
        clean = procedure.clean
        pairs = [attach(clean, row) for row in steps]
        roles = []
        for row, attached in zip(steps, pairs, strict=True):
            found = []
            for head, tail in attached:
                role, score = self._roles.role(clean, row[tail], row[head])
                found.append((head, tail, role, score))
            roles.append(found)
        return self.joined(procedure, steps, roles)

    def joined(
        self,
        procedure: Procedure,
        steps: Sequence[Sequence[Span]],
        roles: Sequence[Sequence[tuple[int, int, str, float]]],
    ) -> Graph:
        """The graph of spans and (action, span, role, score) of each step, with its flow."""
        clean = procedure.clean
        pairs = [[(head, tail) for head, tail, _, _ in row] for row in roles]
        made = self.links(candidates(describe(clean, steps, pairs)))
        assert all(math.isfinite(p) for row in made for _, p in row)
        materials = [material(clean, line) for line in procedure.materials]
        return build(procedure, steps, roles, made, materials)


def gold_spans(recipe: Labelled) -> list[list[Span]]:
    """The annotated spans of each step, in order."""
    spans = sorted(recipe.spans, key=lambda s: s.start)
    return [[s for s in spans if p.start <= s.start < p.end] for p in recipe.procedure.steps]
