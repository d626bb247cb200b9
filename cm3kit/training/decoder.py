"""What `train cm3`, `mdm`, `block` and `hybrid` train: a decoder on pages with masked parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedModel

from cm3kit.data.bundle import INDEX as BUNDLE
from cm3kit.data.bundle import open_documents
from cm3kit.data.token_shards import INDEX, Cursor, Rows, TokenShards
from cm3kit.decoders.probe import check_backbone
from cm3kit.fill.defaults import DIFFUSION, Defaults
from cm3kit.fill.folder import as_trained
from cm3kit.fill.trained import Trained
from cm3kit.models.attention import annealed
from cm3kit.models.backbone import build_backbone, load_backbone, save_backbone
from cm3kit.models.documents import Documents
from cm3kit.models.embeddings import init_mask_embedding
from cm3kit.models.expand import expand
from cm3kit.models.lora import add_lora, without_lora
from cm3kit.models.packing import Packer
from cm3kit.models.timestep import add_timestep, is_timed
from cm3kit.models.transplant import borrow_text, load_transplanted
from cm3kit.models.windows import clear_windows
from cm3kit.objectives.contract import Objective, TokenizerParts
from cm3kit.publish import publishing
from cm3kit.registry import objective
from cm3kit.rng import generator
from cm3kit.training import losses
from cm3kit.training.collate import Packed, Scored, pack
from cm3kit.training.decoder_recipe import DecoderRecipe as DecoderRecipe
from cm3kit.training.decoder_recipe import WarmStart as WarmStart
from cm3kit.training.figures import Figure, sums_by_kind
from cm3kit.training.finished import image_of, text_of
from cm3kit.training.preview import preview
from cm3kit.training.prompts import prompts_of
from cm3kit.training.scorer import KINDS, Picked
from cm3kit.training.scorer import Scorer as Scorer
from cm3kit.training.speed import step_flops
from cm3kit.training.validation import held_documents, spread, validate
from cm3kit.types import Example
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab

AROUND = 6  # ids beside a picture's codes that a row has to hold: of the page, its sentinel, ends
PROMPTS_FROM = 64  # held-out documents that the prompts of previews are taken from
EMPTY = 100  # draws in which nothing has a loss, until training is given up


def _hold_a_picture(window: int, copies: int, grid: tuple[int, int]) -> None:
    """ConfigError (`bad_config`) where no row could hold a picture: all of them would be left out, page by page."""
    codes = grid[0] * grid[1]
    if codes and window // copies < codes + AROUND:
        raise ConfigError(
            f"window = {window}: a picture has {codes} codes, and with its tag and sentinels it needs a window of"
            f" {copies * (codes + AROUND)} ids; set window={copies * (codes + AROUND)} or more, or take an image"
            " tokenizer of fewer codes.",
            code="bad_config",
        )


class DecoderTask:
    """Training on packed pages by any objective; implements `cm3kit.training.loop.Task`."""

    def __init__(self, recipe: DecoderRecipe, cache: Path) -> None:
        self.recipe, self._cache = recipe, cache
        self._held: list[list[int]] = []
        self.notes: list[str] = []
        text, self.image = self._text(), image_of(recipe)
        self.vocab = Vocab(text.size, self.image.size)
        parts = TokenizerParts(self.vocab, text, self.image.grid)
        self.objective: Objective = objective[recipe.objective.name].build(recipe.objective, parts)
        _hold_a_picture(recipe.window, self.objective.copies, self.image.grid)
        self._uses = self.objective.uses(recipe.window)
        if recipe.isolated_masks and any(use.block_size for use in self._uses):
            raise ConfigError(
                f"isolated_masks: {recipe.objective.name} lets masks be attended to within their block; leave it out.",
                code="bad_config",
            )
        self.tokenizer = PageTokenizer(text, self.vocab)
        self.rows = self._shards() if (recipe.data / INDEX).is_file() else None
        self._next = Cursor()
        room = recipe.window // self.objective.copies - 2
        if self.rows is None:
            found = open_documents(recipe.data, self.tokenizer, self.image, cache, recipe.views)
            self.documents, self._held = found
            self._mean = self.documents.mean_length + 6
            sees = bool(self.vocab.image_size)
            self.notes.append(losses.of_documents(self.documents.lengths, room, self.documents.lost, sees))
        else:
            shards = self.rows.shards
            self.notes.append(losses.of_shards(shards.index, shards.lengths.tolist(), room))
        self.notes += losses.of_views(recipe.views, self.documents.views if self.rows is None else None)
        self.model = Scorer(self._backbone(), self.vocab.mask if self.objective.masks else None).train()
        self._scored = Picked(
            self.vocab, self.model.backbone.config.vocab_size if recipe.loop.compile else None
        )
        self._packer = Packer(recipe.packing, self.model.backbone, recipe.loop.compile)

    def _text(self) -> TextTokenizer:
        warm = self.recipe.warm
        if warm.source is None:
            return text_of(self.recipe)
        instead = text_of(self.recipe) if warm.text == "recipe" else None
        self._borrowed = borrow_text(warm.source, instead)
        return self._borrowed.text

    def keep_text(self, folder: Path) -> None:
        """Save a public decoder's text tokenizer, which `model assemble` needs; ConfigError if another is there."""
        if self.recipe.warm.source is None:
            return
        if not folder.exists():
            with publishing(folder) as new:
                self.tokenizer.text.save(new)
        elif TextTokenizer.load(folder).sha256 != self.tokenizer.text.sha256:
            raise ConfigError(
                f"{folder} is of another model than {self.recipe.warm.source}; choose another --output.",
                code="bad_config",
            )

    def _shards(self) -> Rows:
        recipe = self.recipe
        shards = TokenShards(recipe.data, self.tokenizer.text.sha256, self.image.sha256)
        return Rows(shards, recipe.window, recipe.loop.seed, copies=self.objective.copies)

    def _backbone(self) -> PreTrainedModel:
        recipe, size = self.recipe, len(self.vocab)
        if recipe.warm.source is not None:
            model = load_transplanted(self._borrowed, self.vocab, recipe.window)
            self._try_out(model, recipe.warm.source, self.vocab.text)
        elif recipe.backbone_from is None:
            model = build_backbone(recipe.backbone, size)
        else:
            model = load_backbone(recipe.backbone_from, size)
            self._try_out(model, recipe.backbone_from)
            if self.objective.masks:
                init_mask_embedding(model, self.vocab.mask, recipe.mask_embedding)
        if recipe.expand:
            model = expand(model, recipe.expand)
        if recipe.lora.rank:
            new = [id for id in range(size) if id not in self.vocab.text]
            if recipe.warm.source is not None:
                rows = self._borrowed.rows
                new += [id for place, id in enumerate(self.vocab.text) if not rows[place]]
            self._adapted = add_lora(model, recipe.lora, new, recipe.loop.seed)
        if recipe.timestep is not None and not is_timed(model):
            add_timestep(model, recipe.timestep, recipe.loop.seed)
        return model

    def _try_out(self, model: PreTrainedModel, source: str, ids: Sequence[int] | None = None) -> None:
        """Refuse a public decoder that would be trained, or decoded, as another model than the one it is."""
        window, decoders = self.recipe.window, self._trained.decoders
        if (note := clear_windows(model, window)) is not None:
            self.notes.append(note)
        full = "diffusion" in decoders and self.recipe.attention == "objective"
        check_backbone(model, source, window, causal="cm3" in decoders, full=full, ids=ids)

    def seek(self, step: int, size: int, process: int, processes: int) -> None:
        """Advance to the rows of shards that one of several processes takes at a step."""
        if self.rows is not None:
            self._next = self.rows.after(Cursor(), (step * processes + process) * size)

    def batch(self, rng: Generator, size: int) -> Packed:
        """`size` rows of packed examples."""
        window = self.recipe.window
        if self.rows is not None:
            return pack(self._next_examples(self.rows, size), size, window)
        return pack(self._drawn(rng, size)[1], size, window)

    def share(self, batch: Packed, rows: slice) -> Packed:
        """Some rows; the divisor stays that of the whole batch, so that the losses of all shares add up."""
        return Packed(*(each[rows] if each.ndim else each for each in batch))

    def names(self, rng: Generator, size: int) -> list[str]:
        """The pages that `batch` draws, some of which may have found no room in its rows."""
        if self.rows is None:
            return [self.documents.names[each] for each in self._drawn(rng, size)[0]]
        found, at = [], self._next
        for _ in range(size):
            found += [self.rows.shards.key(number)[0] for number, _ in self.rows.row(at)]
            at = self.rows.after(at, 1)
        return found

    def fingerprint(self) -> str:
        """Of the documents."""
        return self.documents.fingerprint() if self.rows is None else self.rows.shards.fingerprint()

    def _drawn(self, rng: Generator, size: int) -> tuple[list[int], list[Example]]:
        """Numbers of documents, and examples of them that fill `size` rows but for what is left where none fits.

        Raises:
            ConfigError: nothing in the pages has a loss.
        """
        window = self.recipe.window
        numbers: list[int] = []
        examples: list[Example] = []
        open_, length, empty = size * window, self._mean, 0
        while open_ > 0:  # an objective may make far less of a document than there is of it
            more = self.documents.pick(rng, int(1.3 * open_ / length) + 2)
            drawn = [self.documents.seen(each, rng) for each in more]
            if self.recipe.views.scored:
                made = self.objective.make_examples(drawn, rng, window)
            else:
                more, made = self._without_views(more, drawn, rng)
            numbers, examples = numbers + more, examples + made
            if not made and (empty := empty + 1) == EMPTY:
                raise ConfigError(
                    f"views.scored = false leaves no id with a loss in {EMPTY} draws of pages; raise views.plain.",
                    code="bad_config",
                )
            total = sum(len(each.ids) for each in examples)
            open_, length = size * window - total, total / max(1, len(examples)) or self._mean
        return numbers, examples

    def _without_views(
        self, numbers: list[int], drawn: list[list[int]], rng: Generator
    ) -> tuple[list[int], list[Example]]:
        """Examples without a loss of codes where a picture is augmented, and none of what has no loss then.

        They are made document by document, since some objectives return those of several in another order.
        """
        kept: list[tuple[int, Example]] = []
        for number, ids in zip(numbers, drawn, strict=True):
            plain = self.documents.is_plain(number, ids)
            for example in self.objective.make_examples([ids], rng, self.recipe.window):
                if not plain:
                    pairs = zip(example.ids, example.weights, strict=True)
                    example.weights[:] = [0.0 if id in self.vocab.image else weight for id, weight in pairs]
                if any(example.weights):
                    kept.append((number, example))
        return [number for number, _ in kept], [example for _, example in kept]

    def _next_examples(self, rows: Rows, size: int) -> list[Example]:
        """Examples of the next rows of shards: what of a document is hidden depends on (seed, epoch, document)."""
        out: list[Example] = []
        for _ in range(size):
            for number, room in rows.row(self._next):
                rng = generator(self.recipe.loop.seed, self._next.epoch, number)
                out += self.objective.make_examples([rows.shards[number]], rng, room)
            self._next = rows.after(self._next, 1)
        return out

    def loss(
        self, model: nn.Module, batch: Packed, step: int, rng: Generator
    ) -> tuple[Tensor, dict[str, Figure]]:
        """Weighed cross-entropy over its divisor, with mean nats of what was hidden by kind apart."""
        device = next(model.parameters()).device
        batch = Packed(*(each.cpu() for each in batch))  # where it is as a rule
        scored, kinds_N = self._scored(batch, device)
        there = Scored(*(each.to(device, non_blocking=True) for each in scored))
        on = Packed(*(each.to(device, non_blocking=True) for each in batch))
        total, nats_N = self._ask(model, on, there, self._mask(batch, step, rng, on))
        filled = float((batch.documents_BT > 0).float().mean())
        sums = sums_by_kind(nats_N, kinds_N, KINDS)
        return total / on.mass.clamp_min(1e-9), {"filled": filled, **sums}

    def nats(self, model: nn.Module, on: Packed, step: int, rng: Generator) -> Tensor:
        """Nats (B, T) of each target under the model of this step, without a gradient."""
        count = on.ids_BT.numel()
        positions_N = torch.arange(count, device=on.ids_BT.device)
        everywhere = Scored(positions_N, on.targets_BT.flatten(), torch.ones_like(positions_N))
        with torch.no_grad():
            mask = self._mask(Packed(*(each.cpu() for each in on)), step, rng, on)
            return self._ask(model, on, everywhere, mask)[1].view_as(on.ids_BT)

    def _ask(
        self, model: nn.Module, on: Packed, scored: Scored, mask: Tensor | BlockMask | Documents
    ) -> tuple[Tensor, Tensor]:
        times = (on.times_BT,) if is_timed(self.model.backbone) else ()
        found: tuple[Tensor, Tensor] = model(on.ids_BT, scored, mask, on.places_BT, *times)
        return found

    def _mask(
        self, batch: Packed, step: int, rng: Generator, on: Packed | None = None
    ) -> Tensor | BlockMask | Documents:
        """The attention pattern of a batch on the CPU, for a model on the device of `on`."""
        recipe, on = self.recipe, batch if on is None else on
        if recipe.attention == "causal":
            here, there = (
                (each.documents_BT, each.places_BT, torch.zeros_like(each.noisy_BT)) for each in (batch, on)
            )
            return self._packer.mask(here, there)
        unseen_BT = on.ids_BT == self.vocab.mask if recipe.isolated_masks else None
        open_share = step / (recipe.anneal * recipe.loop.steps) if recipe.anneal else 1.0
        here, there = ((each.documents_BT, each.blocks_BT, each.noisy_BT) for each in (batch, on))
        if open_share < 1:
            return annealed(*there, open_share, rng, unseen_BT)
        return self._packer.mask(here, there, unseen_BT)

    def work(self, rows: int) -> tuple[int, float]:
        """Ids of rows, and FLOPs of a step on them."""
        config, window = self.model.backbone.config, self.recipe.window
        layers, width = config.num_hidden_layers, config.hidden_size
        return rows * window, step_flops(self.model, rows, window, layers, width)

    def validate(self, model: nn.Module, count: int) -> dict[str, float]:
        """Bits of held-out documents, spread over all that there are; none where the data hold out none."""
        if not self._held:
            self._held = list(self._held_out(count))
        if not self._held:
            return {}
        return validate(
            self.model.backbone, self.objective, self._held[:count], self.tokenizer, self.image, self.recipe.window,
            causal_attention=self.recipe.attention == "causal", unseen=self.recipe.isolated_masks,
        )  # fmt: skip

    def _held_out(self, count: int) -> list[list[int]]:
        if self.rows is not None:
            shards = self.rows.shards
            numbers = [number for number, held in enumerate(shards.held.tolist()) if held]
            return [shards[numbers[place]] for place in spread(len(numbers), count)]
        if (self.recipe.data / BUNDLE).is_file():
            return []
        return held_documents(self.recipe.data, self.tokenizer, self.image, self._cache, count)

    def preview(self, model: nn.Module, path: Path) -> None:
        """A few prompts as pictures, and a page with its gaps filled."""
        defaults = as_trained(Defaults(), self._trained)
        text, prompts = self.tokenizer.text, self.recipe.previews
        if prompts is None:
            prompts = prompts_of(self._held_out(PROMPTS_FROM), self.tokenizer)
        preview(text, self.image, self.vocab, self.model.backbone, defaults, prompts, path)

    def export(self, model: nn.Module, folder: Path) -> None:
        """The backbone in half precision, and what it was trained for."""
        plain = without_lora(self._adapted) if self.recipe.lora.rank else self.model.backbone
        save_backbone(plain, folder, half=True)
        self._trained.save(folder)

    @property
    def _trained(self) -> Trained:
        own = {"isolated_masks": True} if self.recipe.isolated_masks else {}
        uses = [each if each.decoder != DIFFUSION else each.model_copy(update=own) for each in self._uses]
        return Trained(uses=tuple(uses))
