"""Models of a Hugging Face hub: `hf:owner/name`, or `hf:owner/name@revision`, and upload of one.

Files come by huggingface_hub, into its cache, and are a folder then as any other. Offline, what the cache holds is
used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cm3kit.fill.openers import Opener, openers
from cm3kit.fill.parts import Parts
from cm3kit_tokenizers.errors import Cm3kitError, ModelError, OutputError

PREFIX = "hf:"
WORD = r"\w(?:[\w.-]{0,94}\w)?"
NAME = re.compile(rf"(?P<repo>{WORD}/{WORD})(?:@(?P<revision>[\w./-]+))?")
SECONDS = 10.0  # limit of one attempt
# What a model folder and a public family are made of; weights as pickles are never fetched.
WANTED = ("*.json", "*.safetensors", "*.md", "*.txt", "*.model", "*.jinja")


class Hub(Opener):
    """Finds models of the hub."""

    def find(self, wanted: str) -> Path | None:
        """The folder of `hf:owner/name` in the cache, fetched before if need be; None for other names.

        Raises:
            ModelError: the name is none (`bad_value`), there is no such model (`unknown_model`), or the hub cannot be
                reached and the cache does not hold it (`offline`).
        """
        if not wanted.startswith(PREFIX):
            return None
        found = NAME.fullmatch(wanted.removeprefix(PREFIX))
        if found is None:
            raise ModelError(
                f"{wanted!r} is no model of a hub; write hf:owner/name or hf:owner/name@revision.",
                code="bad_value",
            )
        return fetch(found["repo"], found["revision"])

    def open(self, source: Path) -> Parts:
        """Never called: a fetched folder is a cm3kit folder, or of a public family."""
        raise NotImplementedError


def fetch(repo: str, revision: str | None = None) -> Path:
    """A model of the hub as a folder of the cache; errors as `Hub.find`."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    def get(**how: Any) -> Path:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(WANTED), **how))

    try:
        return get(etag_timeout=SECONDS)
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"hf:{repo}: the hub has no such model, or it is private and needs a login (hf auth login).",
            code="unknown_model",
        ) from error
    except (LocalEntryNotFoundError, ConnectionError, OSError, HfHubHTTPError) as error:
        try:
            return get(local_files_only=True)
        except (LocalEntryNotFoundError, OSError):
            why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _line(error)
            raise ModelError(
                f"hf:{repo} is not in the cache, and the hub cannot be reached ({why}); fetch it where there is a"
                " network, or give a folder.",
                code="offline",
            ) from error


def push(folder: Path, repo: str, *, private: bool = False, revision: str | None = None) -> str:
    """Upload a model folder to the hub, creating the repository if needed, and return its address.

    Raises:
        ModelError: the folder is no model (`unknown_model`) or damaged (`bad_checkpoint`), or the name is none.
        OutputError: the hub refuses it, or cannot be reached (`cannot_write`).
    """
    from huggingface_hub import HfApi

    from cm3kit.fill.runs import INDEX
    from cm3kit.publish import verify

    if NAME.fullmatch(repo) is None or "@" in repo:
        raise ModelError(f"{repo!r} is no name of a model on a hub; write owner/name.", code="bad_value")
    if not (folder / INDEX).is_file():
        raise ModelError(f"{folder} is no model folder: it has no {INDEX}.", code="unknown_model")
    if (folder / "manifest.json").is_file() and (wrong := verify(folder)) is not None:
        raise ModelError(f"{folder} is damaged: {wrong}; fetch it again.", code="bad_checkpoint")
    api = HfApi(library_name="cm3kit")
    with _refused(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, revision=revision, commit_message="Upload by cm3kit",
            ignore_patterns=[".*", "**/.*"],
        )  # fmt: skip
    return f"{api.endpoint}/{repo}"


@contextmanager
def _refused(repo: str) -> Iterator[None]:
    try:
        yield
    except Cm3kitError:
        raise
    except Exception as error:
        raise OutputError(f"{repo} cannot be uploaded: {_line(error)}", code="cannot_write") from error


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:160] or type(error).__name__
    return text.rstrip(".")


openers("hub")(Hub())
