"""Token shards: what is packed is what was prepared, in an order that any number of workers can take up."""

from __future__ import annotations

import copy
import io
import itertools
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from cm3kit.data.token_shards import Cursor, Rows, TokenShards, shuffled
from cm3kit.models.backbone import BackboneConfig
from cm3kit.rng import generator
from cm3kit.training.decoder import DecoderRecipe, DecoderTask
from cm3kit.training.loop import LoopSettings, train
from cm3kit.web.describe import stats
from cm3kit_cli.main import run
from cm3kit_tokenizers.document import Image, Markup, Text
from cm3kit_tokenizers.errors import ConfigError, DataError, ModelError, OutputError
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig

pytest.importorskip("pyarrow", reason="the extra web is not installed")
from cm3kit.viewing.sample_page import sample
from cm3kit.web import pack
from cm3kit.web.pack import PackSettings, pack_records
from cm3kit.web.runner import prepare
from cm3kit.web.sources import SourceOptions

torch.set_num_threads(1)
CONFIG = ImageTokenizerConfig(
    resolution=8, channels=(4, 4), codes=16, code_dim=4, latent_channels=4, norm_groups=2, attention=False
)
TEXT = TextTokenizer.train(["words and other words of a page"], 300)


@pytest.fixture(scope="module")
def image() -> ImageTokenizer:
    with torch.random.fork_rng(devices=[]):
        return ImageTokenizer(CONFIG).eval()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pages of 1 … 30 words, every fifth with a picture, and one page twice."""
    root = tmp_path_factory.mktemp("data")
    (root / "site").mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        buffer = io.BytesIO()
        Pillow.new("RGB", (40, 40), colour).save(buffer, "PNG")
        (root / f"site/{name}.png").write_bytes(buffer.getvalue())
    for number in range(30):
        picture = f"<img src={'ab'[number % 2]}.png>" if number % 5 == 0 else ""
        (root / f"site/{number:02}.html").write_text(f"<p>{'word ' * number}{number}{picture}")
    (root / "site/zz.html").write_text("<p>word 1")
    prepare(str(root / "site"), root / "out", options=SourceOptions(pages=8))
    return root / "out"


@pytest.fixture(scope="module")
def packed(prepared: Path, image: ImageTokenizer) -> Path:
    pack_records(prepared, TEXT, image, prepared.parent / "shards", PackSettings(shard_tokens=150))
    return prepared.parent / "shards"


def test_shards_hold_the_documents_that_were_prepared(packed: Path, image: ImageTokenizer) -> None:
    shards = TokenShards(packed, TEXT.sha256, image.sha256)
    pages = PageTokenizer(TEXT, Vocab(TEXT.size, 16))
    assert len(shards) == 30 and len(shards.index["shards"]) > 2 and shards.index["duplicates"] == 1
    assert shards.index["dtype"] == "uint16" and sum(shards.lengths) == shards.index["tokens"]
    for number in range(30):
        words = Text("word " * number + str(number))
        nodes = pages.decode(shards[number])
        assert shards.key(number) == (f"{number:02}.html", 0) and nodes[:2] == [Markup("<p>"), words]
        pictures = [node for node in nodes if isinstance(node, Image)]
        assert len(pictures) == (number % 5 == 0)
        if pictures:
            colour = Pillow.new("RGB", (8, 8), ("red", "blue")[number % 2])
            expected = image.encode(image.pixels([colour]))[0].tolist()
            assert (
                sum(a != b for a, b in zip(expected, pictures[0].codes, strict=True)) <= 4
            )  # WebP moves a colour
    assert stats(packed)["documents"] == 30


def test_the_pictures_of_a_part_are_encoded_once_even_if_packing_was_stopped(
    prepared: Path, image: ImageTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(prepared, tmp_path / "out", ignore=shutil.ignore_patterns("codes"))
    encoded: list[int] = []

    def counted(pictures: list[bytes], tokenizer: ImageTokenizer) -> torch.Tensor:
        encoded.append(len(pictures))
        if len(encoded) == 3:
            raise KeyboardInterrupt
        return torch.zeros(len(pictures), 16, dtype=torch.int32)

    monkeypatch.setattr(pack, "encode_batch", counted)
    with pytest.raises(KeyboardInterrupt):
        pack_records(tmp_path / "out", TEXT, image, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
    pack_records(tmp_path / "out", TEXT, image, tmp_path / "shards")
    assert encoded == [2, 2, 1, 1, 1], "the third part was stopped, the first two were kept"
    assert len(TokenShards(tmp_path / "shards")) == 30
    with pytest.raises(OutputError, match="exists already"):
        pack_records(tmp_path / "out", TEXT, image, tmp_path / "shards")


def test_long_documents_are_cut_between_pictures_and_characters(
    prepared: Path, image: ImageTokenizer, tmp_path: Path
) -> None:
    pack_records(prepared, TEXT, image, tmp_path / "s", PackSettings(longest=20, held_out=0.3, least=1))
    shards = TokenShards(tmp_path / "s")
    assert max(shards.lengths) <= 20 < 2 * min(max(shards.lengths), 20)
    whole: dict[str, list[int]] = {}
    for number in range(len(shards)):
        key, piece = shards.key(number)
        assert piece == 0 or key in whole
        whole.setdefault(key, []).extend(shards[number])
        codes = [
            run
            for is_code, run in itertools.groupby(shards[number], lambda id: id in shards.vocab.image)
            if is_code
        ]
        assert all(len(list(run)) % 16 == 0 for run in codes)
    uncut = TokenShards(prepared.parent / "shards")
    assert whole == {uncut.key(number)[0]: uncut[number] for number in range(30)}
    held = Counter(bool(each) for each in shards.held)
    assert (
        held[True]
        and held[False]
        and len({(shards.key(n)[0], bool(shards.held[n])) for n in range(len(shards))}) == 30
    )
    with pytest.raises(ConfigError, match="shorter than a picture"):
        pack_records(prepared, TEXT, image, tmp_path / "t", PackSettings(longest=12))
    assert not (tmp_path / "t").exists()


def test_pieces_with_pictures_come_several_times_unless_they_are_held_out(
    prepared: Path, image: ImageTokenizer, tmp_path: Path
) -> None:
    settings = PackSettings(longest=20, held_out=0.6, least=1)
    once = pack_records(prepared, TEXT, image, tmp_path / "once", settings)
    more = pack_records(
        prepared, TEXT, image, tmp_path / "more", settings.model_copy(update={"picture_copies": 3})
    )

    def counted(folder: Path) -> Counter[tuple[bool, bool]]:
        shards = TokenShards(folder)
        drawn = [any(id in shards.vocab.image for id in shards[number]) for number in range(len(shards))]
        return Counter(zip(drawn, shards.held.tolist(), strict=True))

    before, after = counted(tmp_path / "once"), counted(tmp_path / "more")
    assert before[True, False] and before[True, True] and once["picture_copies"] == 0
    assert after == {kind: 3 * count if kind == (True, False) else count for kind, count in before.items()}
    assert more["picture_copies"] == 2 * before[True, False]
    assert (more["pages"], more["sliced"]) == (once["pages"], once["sliced"])


def test_another_tokenizer_and_damage_are_refused(
    packed: Path, image: ImageTokenizer, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="packed with another text tokenizer"):
        TokenShards(packed, "0" * 64, image.sha256)
    other = copy.deepcopy(image)
    with torch.no_grad():
        other.codebook_KD[0] += 1
    with pytest.raises(ModelError, match="packed with another image tokenizer"):
        TokenShards(packed, TEXT.sha256, other.sha256)
    decoder = other.network.decoder.conv_out.weight
    before = other.sha256
    with torch.no_grad():
        decoder += 1
        assert other.sha256 == before, "another decoder reads the same codes"
        other.network.quant_conv.weight += 1
    assert other.sha256 != before
    for name, change in (
        ("shard-00000.tokens", lambda data: data[:-1]), ("shard-00001.offsets.npy", lambda data: data[:-8]),
        ("index.json", lambda data: data.replace(b"cm3kit-shards/1", b"cm3kit-shards/9")),
        ("index.json", lambda data: data.replace(b'"shard-00000"', b'"../shard-00000"')),
    ):  # fmt: skip
        shutil.copytree(packed, tmp_path / "bad")
        path = tmp_path / "bad" / name
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(DataError, match="no valid token shards"):
            TokenShards(tmp_path / "bad")
        shutil.rmtree(tmp_path / "bad")


def test_the_shuffle_is_a_permutation_and_its_seeds_tell_them_apart() -> None:
    for size in (*range(1, 40), 1000, 4096, 4097):
        assert sorted(shuffled(np.arange(size), size, 1, 2).tolist()) == list(range(size))
    orders = [
        tuple(shuffled(np.arange(50), 50, *seeds).tolist()) for seeds in ((0, 0), (0, 1), (1, 0), (7, 7))
    ]
    assert len(set(orders)) == 4
    # Every place goes to every other about as often.
    table = np.zeros((8, 8))
    for seed in range(2000):
        table[np.arange(8), shuffled(np.arange(8), 8, seed)] += 1
    assert abs(table - 250).max() < 5 * 250**0.5
    # The order is part of the format: runs that are resumed must find it again.
    assert shuffled(np.arange(10), 10, 1, 0).tolist() == [0, 8, 5, 1, 7, 3, 2, 4, 6, 9]


def test_rows_hold_every_document_once_an_epoch_and_fit(packed: Path) -> None:
    rows = Rows(TokenShards(packed), 64, seed=3, reserve=5)
    for epoch in range(3):
        seen = [rows.row(Cursor(epoch, number)) for number in range(rows.count(epoch))]
        assert sorted(number for row in seen for number, _ in row) == list(range(30))
        assert all(0 < sum(room for _, room in row) <= 64 for row in seen)
        costs = {number: room for row in seen for number, room in row}
        assert all(costs[n] == min(64, rows.shards.lengths[n] + 5) for n in range(30))


@pytest.mark.parametrize("counts", [(1, 2, 3), (3, 1, 5), (2, 2, 7)])
def test_any_number_of_workers_takes_up_the_same_order(packed: Path, counts: tuple[int, ...]) -> None:
    expected = list(itertools.islice(Rows(TokenShards(packed), 64, seed=1).take(Cursor()), 60))
    assert {cursor.epoch for cursor, _ in expected} >= {0, 1, 2}
    seen, cursor = [], Cursor()
    for workers in counts:
        # Workers come and go: each count does a few rounds, and what is left is done from the cursor.
        rounds = [
            list(itertools.islice(Rows(TokenShards(packed), 64, seed=1).take(cursor, worker, workers), 4))
            for worker in range(workers)
        ]
        seen += [each for turn in zip(*rounds, strict=True) for each in turn]
        cursor = Rows(TokenShards(packed), 64, seed=1).after(cursor, 4 * workers)
    assert seen == expected[: len(seen)]


def recipe(packed: Path, image: ImageTokenizer, folder: Path, **loop: object) -> DecoderRecipe:
    for name, tokenizer in (("text", TEXT), ("image", image)):
        (folder / name).mkdir(exist_ok=True)
        tokenizer.save(folder / name)  # type: ignore[attr-defined]
    how = LoopSettings(steps=6, batch_size=2, save_every=2, preview_every=99, precision="fp32", **loop)  # type: ignore[arg-type]
    backbone = BackboneConfig(hidden_size=16, layers=1, heads=1, kv_heads=1)
    return DecoderRecipe(
        data=packed, text=folder / "text", image=folder / "image", window=128, backbone=backbone, loop=how
    )


def test_training_reads_shards_and_a_step_sees_the_same_however_it_came_there(
    packed: Path, image: ImageTokenizer, tmp_path: Path
) -> None:
    task = DecoderTask(recipe(packed, image, tmp_path), tmp_path / "cache")
    assert task.rows is not None

    def batch(step: int, process: int = 0, processes: int = 1, size: int = 2) -> torch.Tensor:
        task.seek(step, size, process, processes)
        return task.batch(generator(0), size).ids_BT

    first = batch(5)
    batch(0)
    assert torch.equal(first, batch(5)) and not torch.equal(first, batch(4))
    split, together = torch.cat([batch(1, 0, 2, 1), batch(1, 1, 2, 1)]), batch(1, 0, 1, 2)
    assert Counter(split.flatten().tolist()) == Counter(together.flatten().tolist()), "two processes, or one"
    task.seek(1, 2, 0, 1)
    numbers = [number for row in (2, 3) for number, _ in task.rows.row(Cursor(0, row))]
    assert task.names(generator(0), 2) == [task.rows.shards.key(number)[0] for number in numbers]
    rows = task.rows.count(0)
    inside = Counter(id for step in range(rows) for id in batch(step, size=1).flatten().tolist())
    whole = Counter(id for number in range(30) for id in task.rows.shards[number])
    assert all(inside[id] >= count for id, count in whole.items()), "an epoch shows every token"


def test_a_run_on_shards_resumes_with_the_same_losses(
    packed: Path, image: ImageTokenizer, tmp_path: Path
) -> None:
    told = recipe(packed, image, tmp_path, log_every=1)
    losses = {}
    for name, stops in (("straight", (6,)), ("halting", (3, 6))):
        for stop in stops:
            task = DecoderTask(told, tmp_path / "cache")
            with torch.random.fork_rng(devices=[]):
                torch.nn.init.constant_(next(task.model.parameters()), 0.01)
            task.preview = lambda model, path: None  # type: ignore[method-assign]
            train(task, told.loop, tmp_path / name, max_steps=stop, device="cpu")
        losses[name] = [
            json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()
        ]
    assert len(losses["straight"]) == 6 and losses["straight"] == losses["halting"]


def test_the_sample_shows_every_kind_of_token_and_can_do_no_harm(
    prepared: Path, packed: Path, image: ImageTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (prepared, packed):
        page = sample(folder, TEXT, image.size, 100)
        assert page.count("<details") == (31 if folder == prepared else 30)
        assert '<i class="m">&lt;p&gt;</i>' in page and '<i class="t">' in page and "<script" not in page
    assert "[16 codes]" in page and 'src="data:image/webp;base64,' in sample(prepared, TEXT, image.size, 100)
    assert sample(prepared, TEXT, image.size, 3, seed=1) == sample(prepared, TEXT, image.size, 3, seed=1)
    recipe(packed, image, tmp_path)
    tokenizers = ["--text", str(tmp_path / "text"), "--image", str(tmp_path / "image")]
    assert run(["data", "pack", str(prepared), "-o", str(tmp_path / "s"), "-q", *tokenizers]) == 0
    assert (
        run(["data", "sample", str(tmp_path / "s"), "-o", str(tmp_path / "s.html"), "-n", "2", *tokenizers])
        == 0
    )
    assert (tmp_path / "s.html").read_text().count("<details") == 2
    assert run(["data", "stats", str(tmp_path / "s")]) == 0 and "documents" in capsys.readouterr().out
