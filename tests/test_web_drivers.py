"""datatrove and Ray Data make what the built-in runner makes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="the extra web is not installed")
from cm3kit.web.runner import prepare
from cm3kit.web.sources import SourceOptions

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli"), str(ROOT / "tokenizers")])
}
DRIVERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(name) is None, reason=f"the extra {name} is not installed"
        ),
    )
    for name in ("datatrove", "ray")
]


def parts(folder: Path) -> dict[str, bytes]:
    found = [path for name in ("parts", "pictures") for path in (folder / name).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_driver_makes_the_same_folder_as_the_runner(driver: str, tmp_path: Path) -> None:
    if driver == "ray" and not (ROOT / "checkpoints/pictures/model_index.json").is_file():
        pytest.skip("checkpoints/pictures is not in this checkout")
    # In a process of its own: these packages warn, log and set signal handlers.
    command = [sys.executable, f"samples/prepare_{driver}.py", "samples/pages", str(tmp_path / driver)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    prepare("samples/pages", tmp_path / "runner", options=SourceOptions(pages=10))
    assert parts(tmp_path / driver) == parts(tmp_path / "runner") != {}


def test_a_datatrove_block_turns_documents_into_records() -> None:
    pytest.importorskip("datatrove", reason="the extra datatrove is not installed")
    from datatrove.data import Document, Media, MediaType

    from cm3kit.web.datatrove import ToRecords

    data = (ROOT / "samples/pictures/banana.png").read_bytes()
    page = Document(
        "<p>x<img src=a.png><script>y", "1", [Media("a", MediaType.IMAGE, "a.png", media_bytes=data)]
    )
    found = list(ToRecords().run([page, Document("", "2")]))
    assert [each.id for each in found] == ["1"] and found[0].metadata["chars"] == 1
    (picture,) = found[0].media
    assert (
        found[0].text == f'<p>x<img src="cm3://sha256/{picture.id}"></p>'
        and picture.media_bytes[:4] == b"RIFF"
    )
