"""Prepare pages and encode pictures with Ray Data, on the CPUs and GPUs of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cm3kit.extras import need
from cm3kit.web.pack import encode_batch
from cm3kit.web.runner import begin, finish, run_piece
from cm3kit.web.settings import WebSettings
from cm3kit.web.sources import SourceOptions
from cm3kit_tokenizers.vq.model import ImageTokenizer


def prepare(
    place: str, output: Path, *, kind: str = "auto", settings: WebSettings | None = None,
    options: SourceOptions | None = None,
) -> dict[str, Any]:  # fmt: skip
    """As `runner.prepare`, one Ray task per piece, on a shared disk; the folder is equal byte for byte."""
    data = need("ray.data", "ray", "Preparing pages with Ray Data")
    job, pieces = begin(place, output, kind, settings, options)
    todo = [{"number": number} for number in range(len(pieces)) if not job.part(number).is_dir()]

    def make(row: dict[str, int]) -> dict[str, int]:
        counts = run_piece(job, row["number"], pieces[row["number"]], {}) or {}
        return {"number": row["number"], "kept": counts.get("pages", {}).get("kept", 0)}

    if todo:
        data.from_items(todo, override_num_blocks=len(todo)).map(make).materialize()
    return finish(job, len(pieces))


class Encode:
    """For `Dataset.map_batches`: encodes the pictures of the column `bytes` into the column `codes`.

    Args:
        folder: of the image tokenizer.
        device: where it runs.
    """

    def __init__(self, folder: str, device: str = "cpu") -> None:
        self.image = ImageTokenizer.load(Path(folder)).to(device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Rows with `codes`, int32, one per cell of the tokenizer's grid."""
        codes_BN = encode_batch([bytes(each) for each in batch["bytes"]], self.image)
        return {**batch, "codes": np.asarray(codes_BN)}
