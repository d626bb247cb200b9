"""Models of a hub, against a stand-in on this machine that answers as the hub's interface does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cm3kit.interop import hub
from cm3kit_tokenizers.errors import ModelError

ROOT = Path(__file__).resolve().parent.parent
EMOJI = ROOT / "checkpoints/pictures"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
shipped = pytest.mark.skipif(
    not (EMOJI / "model_index.json").is_file(), reason="checkpoints/pictures is not here"
)


class StandIn(BaseHTTPRequestHandler):
    """One repository, owner/emoji, in the layout of the hub."""

    asked: list[str]

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        type(self).asked.append(f"{self.command} {path}")
        files = sorted(each.relative_to(EMOJI).as_posix() for each in EMOJI.rglob("*") if each.is_file())
        if path.startswith("/api/models/owner/emoji/revision/"):
            told = {"id": "owner/emoji", "sha": COMMIT, "siblings": [{"rfilename": each} for each in files]}
            return self.send(json.dumps(told).encode(), body)
        if path.startswith("/api/models/owner/emoji/tree/"):
            told_files = [
                {"type": "file", "path": each, "size": (EMOJI / each).stat().st_size, "oid": self.etag(each)}
                for each in files
            ]
            return self.send(json.dumps(told_files).encode(), body)
        name = path.partition(f"/owner/emoji/resolve/{COMMIT}/")[2]
        if name in files:
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{self.etag(name)}"'}
            return self.send((EMOJI / name).read_bytes(), body, headers)
        self.send(b"{}", body, {"X-Error-Code": "RepoNotFound"}, 404)

    def etag(self, name: str) -> str:
        return hashlib.sha1((EMOJI / name).read_bytes()).hexdigest()

    def send(self, data: bytes, body: bool, more: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(more or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def endpoint() -> Iterator[str]:
    StandIn.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def cm3kit(
    cache: Path, endpoint: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: huggingface_hub reads its environment when it is imported."""
    own = {"HF_HUB_CACHE": str(cache), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", **environment}
    own = {**{key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}, **own}
    return subprocess.run(
        [sys.executable, "-m", "cm3kit_cli", *arguments],
        env=own,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@shipped
def test_a_model_of_a_hub_is_used_as_any_other(tmp_path: Path, endpoint: str) -> None:
    online = cm3kit(tmp_path, endpoint, "model", "info", "hf:owner/emoji", "--json")
    assert online.returncode == 0, online.stderr
    assert json.loads(online.stdout)["data"]["name"] == "owner/emoji"
    assert any(each.startswith("GET /owner/emoji/resolve/") for each in StandIn.asked)
    # What the cache holds is there when the hub is not.
    for more in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        offline = cm3kit(tmp_path, endpoint, "model", "info", "hf:owner/emoji", "--json", **more)
        assert offline.returncode == 0, offline.stderr
        assert json.loads(offline.stdout)["data"] == json.loads(online.stdout)["data"]


def test_what_is_not_there_is_said_in_one_line(tmp_path: Path, endpoint: str) -> None:
    start = time.monotonic()
    missing = cm3kit(tmp_path, endpoint, "generate", "x", "-m", "hf:owner/none")
    offline = cm3kit(tmp_path, endpoint, "generate", "x", "-m", "hf:owner/emoji", HF_HUB_OFFLINE="1")
    away = cm3kit(tmp_path, "http://127.0.0.1:9", "generate", "x", "-m", "hf:owner/emoji")
    for done, said in (
        (missing, "no such model"),
        (offline, "HF_HUB_OFFLINE is set"),
        (away, "cannot be reached"),
    ):
        lines = [line for line in done.stderr.splitlines() if not line.startswith("seed ")]
        assert done.returncode == 1 and len(lines) == 1 and said in lines[0], done.stderr
    assert time.monotonic() - start < 120


def test_names_that_are_none(tmp_path: Path) -> None:
    for name in ("hf:", "hf:emoji", "hf:a/b/c", "hf:../x", "hf:a/b@"):
        with pytest.raises(ModelError, match="write hf:owner/name") as refused:
            hub.Hub().find(name)
        assert refused.value.code == "bad_value"
    assert hub.Hub().find("emoji") is None


@shipped
def test_a_model_is_uploaded_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    told: list[tuple[str, dict[str, Any]]] = []
    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(
            huggingface_hub.HfApi,
            name,
            lambda self, *args, _name=name, **how: told.append(
                (_name, {"repo_id": args[0] if args else None, **how})
            ),
        )
    assert hub.push(EMOJI, "owner/emoji", private=True).endswith("/owner/emoji")
    assert [name for name, _ in told] == ["create_repo", "upload_folder"]
    assert (
        told[0][1]["private"]
        and told[1][1]["folder_path"] == EMOJI
        and told[1][1]["repo_id"] == "owner/emoji"
    )
    told.clear()
    for folder, name in ((tmp_path, "owner/x"), (EMOJI, "x"), (EMOJI, "owner/x@main")):
        with pytest.raises(ModelError):
            hub.push(folder, name)
    assert not told
