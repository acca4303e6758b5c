"""CPU time of starting zoo and other programs, in one run.

    python tests/benchmarks/startup.py [--runs 9] [--skip-peers]

CPU time is user + system of the child process; of N runs, taken in turns, the minimum counts. The
table gives it above bare ``python -c pass``, and as a multiple of it. Aims: ``import zoo`` under
0.05 s, ``zoo list`` under 0.15 s, with 300 more plugins under 0.5 s. timm and diffusers are those
of this environment; llm gets a separate environment, made here with pip. Byte code is cached,
as pip leaves it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

AIMS = {"import zoo": 0.05, "zoo list": 0.15, "zoo --help": 0.15, "zoo list, 300 plugins": 0.5}

REGISTRY = """schema: 1
zoo_api: 1
models:
  generated-{number}:
    interface: SRModel
    status: ready
    method: generated
    size: tiny
    domain: photos
    summary: one of many generated models, which is never loaded
    paper: {{title: "On the generation of plugins", id: "arXiv:0000.00000"}}
    license: {{code: Apache-2.0, weights: CC0-1.0}}
    params: 1000
    config: {{widths: [16, 32, 64], scale: 4}}
    class: "zoo_generated_{number}.model:Model"
    options:
      load: {{strength: {{type: float, default: 0.5, min: 0, max: 1, help: "how much"}}}}
    files:
      - {{path: model.safetensors, size: 4000, sha256: {digest}, dtype: float32}}
    hub: {{repo: someone/generated-{number}, revision: null}}
"""


def generate_plugins(folder: Path, count: int) -> None:
    """Fill a folder, like a site-packages, with installed plugins whose code must never run."""
    for number in range(count):
        package = folder / f"zoo_generated_{number}"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise SystemExit('listing imported a plugin')\n")
        text = REGISTRY.format(number=number, digest=f"{number:064x}")
        (package / "registry.yaml").write_text(text)
        info = folder / f"zoo_generated_{number}-1.{number}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.4", f"Name: zoo-generated-{number}", f"Version: 1.{number}"]
        lines += [
            f"Summary: plugin {number}",
            "Requires-Dist: edgezoo",
            "",
            "A description.\n" * 40,
        ]
        (info / "METADATA").write_text("\n".join(lines))
        (info / "entry_points.txt").write_text(
            f"[zoo.plugins]\ngenerated-{number} = zoo_generated_{number}\n"
        )


def cpu_seconds(command: Sequence[str], env: Mapping[str, str]) -> float:
    """User + system time of one run. Raises CalledProcessError if the command fails."""
    before = getrusage(RUSAGE_CHILDREN)
    subprocess.run(command, env=env, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def clean_environment(**more: str) -> dict[str, str]:
    """The current environment without variables that change how Python starts."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "ZOO_"))}
    return {**kept, "HF_HUB_OFFLINE": "1", **more}


def make_llm(folder: Path) -> Path | None:
    """The command ``llm`` in a separate environment, or None if pip cannot install it."""
    venv.EnvBuilder(with_pip=True, symlinks=True).create(folder)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
    done = subprocess.run([*pip, "--quiet", "llm"], capture_output=True, text=True)
    return folder / "bin" / "llm" if done.returncode == 0 else None


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--skip-peers", action="store_true", help="only zoo and bare Python")
    chosen = parser.parse_args()
    python = sys.executable
    zoo = [python, "-c", "from zoo.cli import main; main()"]
    with tempfile.TemporaryDirectory() as name:
        generate_plugins(Path(name) / "site", 300)
        plain = clean_environment()
        many = clean_environment(PYTHONPATH=str(Path(name) / "site"))
        commands = {
            "python -c pass": ([python, "-c", "pass"], plain),
            "import zoo": ([python, "-c", "import zoo"], plain),
            "zoo --help": ([*zoo, "--help"], plain),
            "zoo list": ([*zoo, "list"], plain),
            "zoo plugins": ([*zoo, "plugins"], plain),
            "zoo list, 300 plugins": ([*zoo, "list"], many),
        }
        slow = {}
        if not chosen.skip_peers:
            for peer in ("timm", "diffusers"):
                if find_spec(peer) is not None:
                    slow[f"import {peer}"] = ([python, "-c", f"import {peer}"], plain)
            llm = make_llm(Path(name) / "llm")
            if llm is not None:
                user = {**plain, "HOME": name, "LLM_USER_PATH": str(Path(name) / "user")}
                slow["llm models list"] = ([str(llm), "models", "list"], user)
        best: dict[str, float] = {}
        for turn in range(chosen.runs + 1):  # the first writes byte code, and does not count
            for what, (command, env) in {**commands, **(slow if turn < 4 else {})}.items():
                seconds = cpu_seconds(command, env)
                if turn:
                    best[what] = min(best.get(what, seconds), seconds)
    bare = best["python -c pass"]
    print(f"{'CPU seconds':24}{'total':>8}{'above bare':>12}{'x bare':>8}  aim")
    for what, seconds in best.items():
        aim = AIMS.get(what)
        said = "" if aim is None else f"< {aim:g}: {'met' if seconds - bare < aim else 'MISSED'}"
        print(f"{what:24}{seconds:8.3f}{seconds - bare:12.3f}{seconds / bare:8.1f}  {said}")


if __name__ == "__main__":
    main()
