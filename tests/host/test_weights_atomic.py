"""Writing is all or nothing: no partial file, no user data lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from zoo import weights
from zoo.errors import OutputError


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with weights.atomic_file(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert listing(tmp_path) == ["a.png"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("there", [True, False])
def test_an_error_leaves_what_was_there(
    tmp_path: Path, error: type[BaseException], there: bool
) -> None:
    path = tmp_path / "a.txt"
    if there:
        path.write_text("old")
    with pytest.raises(error), weights.atomic_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert listing(tmp_path) == (["a.txt"] if there else [])
    assert not there or path.read_text() == "old"


def test_an_existing_file_is_kept_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with (
        pytest.raises(OutputError, match=r"already exists.*overwrite=True / --force"),
        weights.atomic_file(path, overwrite=False),
    ):
        pytest.fail("the body must not run")
    with weights.atomic_file(path, overwrite=True) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with (  # noqa: PT012
        pytest.raises(OutputError, match="already exists"),
        weights.atomic_file(path, overwrite=False) as temporary,
    ):
        temporary.write_text("mine")
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert listing(tmp_path) == ["a.txt"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("old")
    link.symlink_to(real)
    with weights.atomic_file(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_the_file_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with weights.atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("x")
    weights.save_tensors(tmp_path / "b.safetensors", {"x": torch.zeros(2)})
    for name in ("a", "b.safetensors"):
        assert (tmp_path / name).stat().st_mode == (tmp_path / "plain").stat().st_mode


def unwritable(tmp_path: Path, case: str) -> Path:
    (tmp_path / "file").write_text("x")
    return {
        "not a folder": tmp_path / "none" / "a.txt",
        "below a file": tmp_path / "file" / "a.txt",
        "a folder": tmp_path,
        "/proc": Path("/proc/a.txt"),
        "a device": Path(os.devnull),
        "a long name": tmp_path / ("a" * 300),
        "a long path": tmp_path.joinpath(*["b" * 200] * 30),
        "a null byte": tmp_path / "a\0b",
    }[case]


UNWRITABLE = {
    "not a folder": "none is not a folder. Create it first",
    "below a file": "file is not a folder",
    "a folder": "is a folder",
    "/proc": "cannot write",
    "a device": "not a regular file",
    "a long name": "too long",
    "a long path": "cannot write",
    "a null byte": "null",
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_where_a_file_cannot_go(tmp_path: Path, case: str) -> None:
    path = unwritable(tmp_path, case)
    with (
        pytest.raises(OutputError, match=re.escape(UNWRITABLE[case])) as caught,
        weights.atomic_file(path),
    ):
        pytest.fail("the body must not run")
    assert "\n" not in str(caught.value)
    assert listing(tmp_path) == ["file"]


@pytest.mark.parametrize("case", ["not a folder", "below a file", "/proc", "a long name"])
def test_where_a_folder_cannot_go(tmp_path: Path, case: str) -> None:
    path = unwritable(tmp_path, case)
    with pytest.raises(OutputError, match=r"cannot write"), weights.atomic_folder(path):
        pass
    assert listing(tmp_path) == ["file"]


def test_a_full_disk_is_said_in_words(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with (
        pytest.raises(OutputError, match=r"cannot write .*a\.txt: No space left"),
        weights.atomic_file(tmp_path / "a.txt"),
    ):
        Path("/dev/full").write_text("x")
    with pytest.raises(FileNotFoundError), weights.atomic_file(tmp_path / "a.txt"):
        (tmp_path / "an input of the body").read_text()
    assert listing(tmp_path) == []


# --- folders --------------------------------------------------------------------------------------


def make(path: Path, text: str, **options: bool) -> None:
    with weights.atomic_folder(path, **options) as folder:
        (folder / "zoo.json").write_text(text)
        assert not path.exists() or (path / "zoo.json").read_text() != text


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    make(tmp_path / "a", "one")
    assert (tmp_path / "a" / "zoo.json").read_text() == "one"
    assert listing(tmp_path) == ["a"]


def test_only_a_saved_folder_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    make(path, "one")
    (path / "left over").touch()
    with pytest.raises(OutputError, match="already exists"):
        make(path, "two")
    make(path, "two", overwrite=True)
    assert listing(path) == ["zoo.json"]
    assert listing(tmp_path) == ["a"]

    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").touch()
    for overwrite in (True, False):
        with pytest.raises(OutputError):
            make(photos, "x", overwrite=overwrite)
    with pytest.raises(OutputError, match="is not a saved model"):
        make(photos, "x", overwrite=True)
    assert listing(photos) == ["holiday.jpg"]
    with pytest.raises(OutputError, match="is a file"):
        make(photos / "holiday.jpg", "x", overwrite=True)


def test_an_empty_folder_counts_as_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with weights.atomic_folder(tmp_path / "a") as folder:
        (folder / "zoo.json").write_text("x")
    assert listing(tmp_path / "a") == ["zoo.json"]


def test_the_current_folder_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="current folder"):
        make(Path(), "x")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("there", [True, False])
def test_an_error_leaves_the_old_folder(
    tmp_path: Path, error: type[BaseException], there: bool
) -> None:
    path = tmp_path / "a"
    if there:
        make(path, "old")
    with pytest.raises(error), weights.atomic_folder(path, overwrite=True) as folder:  # noqa: PT012
        (folder / "zoo.json").write_text("half")
        raise error
    assert listing(tmp_path) == (["a"] if there else [])
    assert not there or (path / "zoo.json").read_text() == "old"


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_a_swap_that_fails_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "a"
    make(path, "old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == path and not self.name.endswith("-old"):
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        make(path, "new", overwrite=True)
    assert (path / "zoo.json").read_text() == "old"
    assert listing(tmp_path) == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("verb", ["atomic_file", "atomic_folder"])
def test_ctrl_c_leaves_nothing(tmp_path: Path, verb: str) -> None:
    code = f"""
        import time
        from zoo import weights
        with weights.{verb}({str(tmp_path / "out")!r}) as temporary:
            (temporary if temporary.is_file() else temporary / "a").write_bytes(b"half")
            print("ready", flush=True)
            time.sleep(60)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert len(listing(tmp_path)) == 1
        child.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 10
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    assert child.returncode not in (0, None)
    assert listing(tmp_path) == []
