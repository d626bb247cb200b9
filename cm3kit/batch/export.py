"""Outputs of a sampling run as a folder of files, as WebDataset tars, or as Parquet."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cm3kit.batch.manage import contents
from cm3kit.batch.store import JOB, MANIFEST, Key, Line, read_job
from cm3kit.extras import need
from cm3kit.json_lines import dump_json, dump_jsonl
from cm3kit.publish import publishing
from cm3kit.registry import Registry
from cm3kit_tokenizers.errors import DataError

PER_SHARD = 1000
Outputs = Iterator[tuple[Key, Line, bytes]]

exporter: Registry[Callable[[Outputs, Path, int], None]] = Registry("form of export")
"""Writes outputs into a new folder; the number is the outputs per file."""


def export(folder: Path, output: Path, form: str, per_shard: int = PER_SHARD) -> dict[str, Any]:
    """Write all finished outputs in order, each checked against its hash; all or nothing.

    Args:
        output: a new folder.
        form: `folder`, `webdataset` or `parquet`.

    Raises:
        DataError: a file is missing or damaged, or no output is finished. OutputError: `output` exists.
    """
    write, counted = exporter[form], 0
    job = read_job(folder)

    def outputs() -> Outputs:
        nonlocal counted
        for key, line, content in contents(folder):
            if content is None:
                raise DataError(
                    f"{folder / line['path']} is missing or damaged; remove it and repeat the same sample run.",
                    code="bad_data",
                )
            counted += 1
            yield key, line, content

    with publishing(output) as target:
        write(outputs(), target, per_shard)
        if not counted:
            raise DataError(f"{folder} holds no outputs; start cm3kit sample run first.", code="empty_file")
        (target / JOB).write_text(f"{dump_json(job, indent=1)}\n", encoding="utf-8")
    return {"folder": output, "form": form, "outputs": counted, "missing": job["outputs"] - counted}


@exporter("folder")
def as_folder(outputs: Outputs, target: Path, per_shard: int) -> None:
    """Files named by row, output and id, and a manifest of them."""
    lines = []
    for key, line, content in outputs:
        name = f"{_name(key)}{_safe(str(line['id']))}{_suffix(line)}"
        (target / name).write_bytes(content)
        lines.append({**line, "path": name})
    (target / MANIFEST).write_text(dump_jsonl(lines), encoding="utf-8")


@exporter("webdataset")
def as_webdataset(outputs: Outputs, target: Path, per_shard: int) -> None:
    """`shard-000000.tar`, …: per output its file and manifest line (`.json`) under one key, without time and owner."""
    archive, count = None, 0
    try:
        for key, line, content in outputs:
            if count % per_shard == 0:
                if archive:
                    archive.close()
                archive = tarfile.open(
                    target / f"shard-{count // per_shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT
                )
            count += 1
            assert archive is not None
            for suffix, data in ((_suffix(line), content), (".json", dump_json(line).encode())):
                member = tarfile.TarInfo(f"{_name(key)}{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    finally:
        if archive:
            archive.close()


@exporter("parquet")
def as_parquet(outputs: Outputs, target: Path, per_shard: int) -> None:
    """`part-000000.parquet`, …: the file in `content`, common fields in columns, the whole line in `line`."""
    parquet = need("pyarrow.parquet", "web", "Writing Parquet")
    import pyarrow

    kinds = {
        "row": pyarrow.int64(), "index": pyarrow.int64(), "id": pyarrow.string(), "task": pyarrow.string(),
        "prompt": pyarrow.string(), "seed": pyarrow.int64(), "sample": pyarrow.int64(), "text": pyarrow.string(),
        "logprob": pyarrow.float64(), "ended": pyarrow.bool_(), "path": pyarrow.string(),
        "sha256": pyarrow.string(), "content": pyarrow.binary(), "line": pyarrow.string(),
    }  # fmt: skip
    schema = pyarrow.schema(list(kinds.items()))
    rows: list[dict[str, Any]] = []

    def flush(number: int) -> None:
        table = pyarrow.Table.from_pylist(rows, schema)
        parquet.write_table(table, target / f"part-{number:06d}.parquet", compression="zstd")
        rows.clear()

    number = 0
    for _, line, content in outputs:
        rows.append({**{name: line.get(name) for name in kinds}, "content": content, "line": dump_json(line)})
        if len(rows) == per_shard:
            flush(number)
            number += 1
    if rows:
        flush(number)


def _name(key: Key) -> str:
    return f"{key[0]:06d}-{key[1]}"


def _suffix(line: Line) -> str:
    return Path(str(line["path"])).suffix


def _safe(id: str) -> str:
    """The id as part of a file name; empty if it is only a number."""
    words = re.sub(r"[^\w.-]+", "-", id).strip("-.")[:60]
    return "" if id.isdecimal() or not words else f"-{words}"
