"""``zoo cache``: shows and frees the disk space of downloaded models."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import UsageError
from .options import echo_json, json_option


@click.command()
@click.argument("repos", nargs=-1, metavar="[ORG/NAME]...")
@click.option("--free", is_flag=True, help="Delete the named repositories, after asking.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def cache(repos: tuple[str, ...], free: bool, yes: bool, as_json: bool) -> None:
    """Show the models in the Hugging Face cache, which zoo shares with other programs.

    With --free, delete the named ones. Bundled weights are not in the cache.
    """
    from huggingface_hub import CacheNotFound, scan_cache_dir

    from .. import hub
    from ..entry import near

    folder = hub.cache_folder()
    try:
        scanned = scan_cache_dir(folder)
    except CacheNotFound:
        return echo_json([]) if as_json else click.echo(f"{folder} is empty.")
    models = {r.repo_id: r for r in scanned.repos if r.repo_type == "model"}
    unknown = [name for name in repos if name not in models]
    if unknown:
        hint = near(unknown[0], models)
        raise UsageError(
            f"{unknown[0]!r} is not in {folder}"
            + (f"; did you mean {hint[0]!r}?" if hint else "; `zoo cache` lists all.")
        )
    chosen = [models[name] for name in repos] or sorted(models.values(), key=lambda r: r.repo_id)
    sizes = {r.repo_id: _size(r.repo_path) for r in chosen}
    if free:
        if not repos:
            raise UsageError("name the repositories to delete: zoo cache --free org/name")
        size = sum(sizes.values())
        if not yes:
            click.confirm(f"Delete {', '.join(repos)} ({size:,} bytes)?", abort=True, err=True)
        commits = [revision.commit_hash for r in chosen for revision in r.revisions]
        scanned.delete_revisions(*commits).execute()
        return echo_json({"freed": size}) if as_json else click.echo(f"freed {size:,} bytes")
    if as_json:
        return echo_json(
            [{"repo": r.repo_id, "size": sizes[r.repo_id], "path": r.repo_path} for r in chosen]
        )
    for r in chosen:
        click.echo(f"{r.repo_id:40} {sizes[r.repo_id]:>15,} bytes  {r.repo_path}")
    return click.echo(f"{sum(sizes.values()):,} bytes in {folder}")


def _size(repo: Path) -> int:
    """Bytes of a repository, including partial downloads."""
    files = (f for f in repo.rglob("*") if f.is_file() and not f.is_symlink())
    return sum(f.stat().st_size for f in files)
