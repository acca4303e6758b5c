"""``zoo card`` and ``zoo publish``: write a model's card, and upload it to the Hub."""

from __future__ import annotations

from pathlib import Path

import click

from .. import api, cards
from .options import PATH, echo_json, json_option, model_argument

folder_option = click.option(
    "--cards",
    "where",
    type=PATH,
    default=Path("hub_cards"),
    show_default=True,
    help="Folder of the cards: <model>/README.md and results.json.",
)


@click.command()
@model_argument
@folder_option
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 if anything is wrong.")
@click.pass_context
def card(ctx: click.Context, model: str, where: Path, check: bool) -> None:
    """Write MODEL's card from its registry entry and results.json, or check the existing card."""
    entry = api.entry_of(model)
    folder = where / entry.name
    if not check:
        click.echo(cards.write(entry, folder))
    faults = cards.faults(entry, folder)
    for fault in faults:
        click.echo(f"{folder / 'README.md'}: {fault}", err=True)
    if check and not faults:
        click.echo(f"{folder / 'README.md'}: fresh, and everything in it has a source")
    if check and faults:
        ctx.exit(1)


@click.command()
@model_argument
@click.option(
    "--to", "repo", required=True, metavar="ORG/NAME", help="Hub repository; created if new."
)
@click.option("--registry", type=PATH, help="Registry file to pin; default: the checkout's own.")
@folder_option
@click.option(
    "--license", "licence", help="Licence of a saved folder: the Hub's identifier, such as mit."
)
@click.option(
    "--trained-on",
    multiple=True,
    help="Training data of a saved folder: a data set and its licence. Repeatable.",
)
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--dry-run", is_flag=True, help="Show what would be uploaded; upload nothing.")
@json_option
def publish(
    model: str,
    repo: str,
    registry: Path | None,
    where: Path,
    licence: str | None,
    trained_on: tuple[str, ...],
    private: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Upload MODEL (a name, or a saved folder) and its card in one commit, and pin that commit."""
    from .. import publish as publishing

    plan = publishing.plan(model, where, registry, repo=repo, license=licence, data=trained_on)
    if isinstance(plan.files.get("README.md"), bytes) and not (licence and trained_on):
        click.echo(
            "the card has no licence or no training data. Add them with --license and "
            "--trained-on.",
            err=True,
        )
    if dry_run:
        if as_json:
            return echo_json(plan.listing())
        for path, size in plan.listing().items():
            click.echo(f"{path:32} {size:>12,} bytes")
        return click.echo(f"would go to {repo} in one commit; nothing was uploaded")
    commit = publishing.upload(plan, repo, private=private)
    if as_json:
        return echo_json({"repo": repo, "revision": commit, "registry": plan.registry})
    click.echo(f"{repo}@{commit}")
    if plan.registry:
        click.echo(f"{plan.registry}: pinned")
