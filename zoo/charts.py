"""Charts of measurements, all in one style: curves and bars, drawn by matplotlib as a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MissingDependencyError
from .files import atomic_file
from .interfaces import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = Sequence[tuple[float, ...]]
"""Points (x, y), or (x, y, spread)."""


@dataclass(frozen=True)
class Curves:
    """A panel with a line for each label, the first one in black; a single point is a cross."""

    lines: Mapping[str, Line]
    xlabel: str
    ylabel: str
    title: str = ""
    log: str = ""
    """The logarithmic axes: "x", "y" or "xy"."""


@dataclass(frozen=True)
class Bars:
    """A panel with a bar for each row and label, and error bars over several runs."""

    rows: Mapping[str, Mapping[str, float | Metric]]
    """Row -> label -> number; a row may lack some."""
    xlabel: str
    title: str = ""


def curves(
    path: Path,
    lines: Mapping[str, Line] | Mapping[str, Mapping[str, Line]],
    *,
    xlabel: str,
    ylabel: str,
    log: str = "",
) -> None:
    """Draw lines by label as a PNG; or by title and label, with a panel for each title."""
    nested = any(isinstance(line, Mapping) for line in lines.values())
    panels: Any = lines if nested else {"": lines}
    draw(path, *(Curves(own, xlabel, ylabel, title, log) for title, own in panels.items()))


def draw(path: Path, *panels: Curves | Bars) -> None:
    """Draw panels side by side as a PNG, whole or not at all."""
    picture = figure(*panels)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        picture.savefig(temporary, dpi=110, format="png")


def figure(*panels: Curves | Bars) -> Figure:
    """The chart of ``draw`` as a separate matplotlib figure, without global state."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "charts are drawn by matplotlib, which is not installed. "
            "Run: pip install 'edgezoo[bench]'",
            name="matplotlib",
        ) from error
    tallest = max([len(p.rows) * _series(p) for p in panels if isinstance(p, Bars)], default=0)
    made = Figure(
        figsize=(5.6 * len(panels), max(4.4, 1.4 + 0.16 * tallest)),
        facecolor="white",
        layout="constrained",
    )
    colours: dict[str, int] = {}  # a label has the same one in all panels
    for axes, panel in zip(made.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel(panel.xlabel)
        if isinstance(panel, Curves):
            _draw_curves(axes, panel, colours)
        else:
            _draw_bars(axes, panel)
    return made


def _draw_curves(axes: Axes, panel: Curves, colours: dict[str, int]) -> None:
    axes.set_ylabel(panel.ylabel)
    axes.grid(color="0.92")
    axes.set_xscale("log" if "x" in panel.log else "linear")
    axes.set_yscale("log" if "y" in panel.log else "linear")
    for i, (label, line) in enumerate(panel.lines.items()):
        x, y, *spread = zip(*line, strict=True)
        number = colours.setdefault(label, len(colours)) if i else 0
        axes.errorbar(
            x,
            y,
            spread[0] if spread else None,
            color=f"C{number % 10}" if i else "black",
            linestyle="" if len(x) == 1 else ("-", "--", ":")[number // 10 % 3],
            linewidth=2 if i == 0 else 1.2,
            marker="x" if len(x) == 1 else "o" if len(x) <= 30 else "",
            markersize=6 if len(x) == 1 else 3.5,
            capsize=2,
            label=label,
        )
    places = {point[0] for line in panel.lines.values() for point in line}
    if "x" in panel.log and len(ticks := sorted(places)) <= 8:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    _legend(axes, [label for label in panel.lines if label])


def _series(panel: Bars) -> int:
    return len({label for values in panel.rows.values() for label in values})


def _draw_bars(axes: Axes, panel: Bars) -> None:
    axes.grid(axis="x", color="0.92")
    labels = [*dict.fromkeys(label for values in panel.rows.values() for label in values)]
    height = 0.8 / len(labels)
    for i, label in enumerate(labels):
        own = [(at, v[label]) for at, v in enumerate(panel.rows.values()) if label in v]
        found = [v if isinstance(v, Metric) else Metric(v) for _, v in own]
        axes.barh(
            [at + (i - (len(labels) - 1) / 2) * height for at, _ in own],
            [v.mean for v in found],
            height,
            xerr=[v.std for v in found] if any(v.n > 1 for v in found) else None,
            error_kw={"elinewidth": 0.8, "capsize": 1.5},
            color=f"C{i}",
            label=label,
        )
    axes.set_yticks(range(len(panel.rows)), [*panel.rows], fontsize=8)
    axes.invert_yaxis()
    _legend(axes, [label for label in labels if label])


def _legend(axes: Axes, labels: Sequence[str]) -> None:
    """Draw the legend below the panel, where it hides nothing."""
    from matplotlib.transforms import ScaledTranslation

    if labels:
        picture = axes.get_figure(root=True)
        assert picture is not None
        inches = ScaledTranslation(0, -0.5, picture.dpi_scale_trans)
        axes.legend(
            fontsize=8,
            frameon=False,
            ncols=min(3, len(labels)),
            loc="upper center",
            bbox_to_anchor=(0.5, 0),
            bbox_transform=axes.transAxes + inches,
        )
