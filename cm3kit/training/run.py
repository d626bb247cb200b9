"""From a recipe to a finished run: settings, task, loop."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from difflib import get_close_matches
from functools import partial
from importlib import import_module, resources
from itertools import groupby
from pathlib import Path
from typing import Any

from cm3kit import plugins
from cm3kit.config import Settings, Traced, dump, read_yaml, resolve, trace
from cm3kit.fill.finding import assemble_run
from cm3kit.fill.runs import FINAL
from cm3kit.publish import make_folder, write_atomic
from cm3kit.registry import Registry
from cm3kit.training.loop import train
from cm3kit.training.losses import filled
from cm3kit.training.observe import Observer, Seen
from cm3kit.training.precision import in_turn, rank, started_alone
from cm3kit.training.speed import Gauge
from cm3kit.training.task import LoopSettings, Report, Task, Warn
from cm3kit.training.trackers import trackers
from cm3kit_tokenizers.errors import ConfigError, OutputError

LOCK, NOTES = ".lock", "notes.txt"
# An update of reinforcement learning is a small step, and the policy that is kept is the last one.
RL_LOOP = {
    "steps": 200, "batch_size": 64, "learning_rate": 1e-5, "final": 0.1, "ema": 0.0, "clip": 0.2, "betas": [0.9, 0.99],
    "save_every": 20, "preview_every": 20, "validate_every": 20, "log_every": 1,
}  # fmt: skip
VIEWING = "cm3kit.viewing.training_page"  # registers the page of a run
DECODERS = {"cm3": "cm3", "mdm": "masked-diffusion", "block": "block-diffusion", "hybrid": "hybrid"}

Start = Callable[..., Path]
Shape = Callable[[], tuple[type[Settings], dict[str, Any]]]
Viewer = Callable[[Path, Gauge, Warn], Observer]
# What shows a run as it goes: made for its folder, its figures of speed, and lines for the user.
viewers: Registry[Viewer] = Registry("view of a training")
trainable: Registry[Start] = Registry("kind of training")
# What a recipe of a kind is, and what is set before it; imported when it is asked for.
recipes: Registry[Shape] = Registry("kind of training")


@recipes("vqgan")
def _vqgan_recipe() -> tuple[type[Settings], dict[str, Any]]:
    from cm3kit.training.vqgan import VqganRecipe

    return VqganRecipe, {}


@recipes("text")
def _text_recipe() -> tuple[type[Settings], dict[str, Any]]:
    from cm3kit.training.text import TextRecipe

    return TextRecipe, {}


@recipes("rl")
def _rl_recipe() -> tuple[type[Settings], dict[str, Any]]:
    from cm3kit.training.rl.recipe import RLRecipe

    return RLRecipe, {"loop": RL_LOOP}


def _decoder_recipe(objective: str) -> Shape:
    def shape() -> tuple[type[Settings], dict[str, Any]]:
        from cm3kit.training.decoder import DecoderRecipe

        return DecoderRecipe, {"objective": {"name": objective}}

    return shape


@trainable("vqgan")
def _vqgan(recipe: Any, output: Path, **how: Any) -> Path:
    from cm3kit.training.vqgan import VqganTask

    return _watched(VqganTask(recipe), recipe.loop, output, how)


@trainable("text")
def _text(recipe: Any, output: Path, **how: Any) -> Path:
    from cm3kit.training.text import train_text

    path = train_text(recipe, output)
    how["kept"]()
    return path


@trainable("rl")
def _rl(recipe: Any, output: Path, **how: Any) -> Path:
    from cm3kit.training.rl.task import RLTask

    task = RLTask(recipe)
    if rank() == 0:
        for note in task.notes:
            how["warn"](note)
    kept, before = how.pop("kept"), output / "previews" / "step-000000"

    def keep_all() -> None:
        kept()
        write_atomic(output / NOTES, "".join(f"{note}\n" for note in task.notes).encode(), force=True)
        # Samples of the policy before training, for comparison.
        if not before.parent.exists():
            task.preview_before(before)

    return _watched(task, recipe.loop, output, {**how, "kept": keep_all})


def _decoder(recipe: Any, output: Path, **how: Any) -> Path:
    """The objective is what the recipe says."""
    from cm3kit.training.decoder import DecoderTask

    # Pages are parsed once, by the main process; the others read the cache.
    task = in_turn(lambda: DecoderTask(recipe, output / "cache"), str(how.get("device", "auto")))
    if rank() == 0:
        for note in task.notes:
            how["warn"](note)
    kept = how.pop("kept")

    def keep_all() -> None:
        task.keep_text(output / "text")
        kept()
        write_atomic(output / NOTES, "".join(f"{note}\n" for note in task.notes).encode(), force=True)

    done = _watched(task, recipe.loop, output, {**how, "kept": keep_all})
    if rank() == 0 and (line := filled(output / "log.jsonl")) is not None:
        how["warn"](line)
    if rank() == 0 and (output / FINAL).is_dir():
        assemble_run(output)  # so that the run can be used as a model
    return done


def _watched(task: Task, settings: LoopSettings, output: Path, how: dict[str, Any]) -> Path:
    """Train, with the page of the run, trackers and figures of speed, which the main process has alone."""
    gauge, kept = Gauge(task, settings), how.pop("kept")
    import_module(VIEWING)
    watching: list[Observer] = [_AtFirst(kept), gauge]
    watching += [viewers[name](output, gauge, how["warn"]) for name in viewers]
    if rank() == 0:
        watching += trackers(settings.trackers, output, settings.log_every)
    own = {"report": gauge.telling(how["report"]), "observers": [*watching, *how["observers"]]}
    done = train(task, settings, output, **{**how, **own})
    if done == output and rank() == 0:  # the folder of the run, as there is no result yet
        how["warn"](
            f"stopped after step {how['max_steps']} of {settings.steps} as --max-steps says, and saved; the same"
            " command without it goes on"
        )
    return done


class _AtFirst:
    """Writes the recipe of a run once it is accepted: the checkpoint fits, and no other run is there."""

    def __init__(self, write: Callable[[], None]) -> None:
        self._write: Callable[[], None] | None = write

    def begin(self, step: int, total: int) -> None:
        """Write, the first time."""
        if self._write is not None:
            self._write()
            self._write = None

    def saw(self, seen: Seen) -> None:
        """Nothing to do."""

    def end(self) -> None:
        """Nothing to do."""


for _kind, _objective in DECODERS.items():
    recipes(_kind)(_decoder_recipe(_objective))
    trainable(_kind)(_decoder)


def run(
    kind: str,
    config: Sequence[Path] = (),
    overrides: Sequence[str] = (),
    output: Path = Path("runs/latest"),
    *,
    resume: bool = True,
    max_steps: int | None = None,
    device: str = "auto",
    report: Report = lambda step, total, figures: None,
    warn: Warn = lambda line: None,
    observers: Sequence[Observer] = (),
) -> Path:
    """Train `kind` (vqgan, text, cm3, mdm, block or hybrid) by the merged recipes, and return the folder of the result.

    A recipe is a YAML file, or the name of one that ships (such as `emoji-vqgan`).
    """
    plugins.load()
    if line := started_alone():
        warn(line)
    start = trainable[kind]
    shape, base = recipes[kind]()
    recipe = resolve(shape, [base, *(read_yaml(recipe_path(path)) for path in config)], list(overrides))
    with locked(output) if rank() == 0 else nullcontext():
        return start(
            recipe,
            output,
            resume=resume,
            max_steps=max_steps,
            device=device,
            report=report,
            warn=warn,
            observers=observers,
            kept=partial(keep, recipe, output),
        )


def kind_of(config: Sequence[Path]) -> str:
    """The kind of training that recipes are of: by the end of a name, or by their keys; ConfigError if that is open."""
    for path in config:
        last = path.stem.split("-")[-1]
        if last in recipes:
            return last
    keys = {key for path in config for key in read_yaml(recipe_path(path))}
    fitting = [
        kind for kind in ("vqgan", "text", "rl", "cm3") if keys <= set(recipes[kind]()[0].model_fields)
    ]
    if len(fitting) != 1:
        raise ConfigError(
            f"the kind of training is not clear for {', '.join(map(str, config)) or 'no recipe'}; name it,"
            f" with --kind: {', '.join(recipes)}.",
            code="bad_config",
        )
    return fitting[0]


def traced(config: Sequence[Path], overrides: Sequence[str] = (), kind: str | None = None) -> Traced:
    """Merged recipes, each value with its source."""
    plugins.load()
    kind = kind or kind_of(config)
    shape, base = recipes[kind]()
    sources = [(f"train {kind}", base), *((str(path), read_yaml(recipe_path(path))) for path in config)]
    return trace(shape, sources, list(overrides))


def recipe_path(name: Path, defaults: bool = False) -> Path:
    """A recipe's file: the path itself, or what ships under that name (see below); ConfigError if there is neither."""
    shipped = {path.stem: path for path in shipped_recipes(defaults)}
    if name.exists():
        return name
    if str(name) in shipped:
        return shipped[str(name)]
    near = get_close_matches(name.stem, shipped, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"recipes that ship: {_listed(shipped)}."
    raise ConfigError(f"no recipe {str(name)!r}: neither a file nor one that ships; {hint}", code="no_file")


def _listed(names: Iterable[str], between: str = ", ") -> str:
    """Names in a line: those with one first word together, as a shell would spell them out, and so on inside."""
    found = []
    for first, group in groupby(sorted(names), lambda name: name.partition("-")[0]):
        rest = [name.partition("-")[2] for name in group]
        longer = [name for name in rest if name]
        found += [first] * (len(longer) < len(rest))
        found += (
            [f"{first}-{{{_listed(longer, ',')}}}" if len(longer) > 1 else f"{first}-{longer[0]}"]
            if longer
            else []
        )
    return between.join(found)


def shipped_recipes(defaults: bool = False) -> list[Path]:
    """Files of the recipes that ship, or those of the `defaults` of models, which nothing is trained by."""
    found = sorted(Path(str(resources.files("cm3kit.training"))).glob("recipes/*.yaml"))
    return [path for path in found if path.stem.endswith("-defaults") == defaults]


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Lock the folder of a run while it is trained; the lock ends with the process.

    Raises:
        OutputError: another process trains there (`in_use`), or the folder cannot be made (`cannot_write`).
    """
    new = not output.exists()
    try:
        make_folder(output)
        lock = (output / LOCK).open("ab")
    except OSError as error:
        raise OutputError(
            f"{output} cannot be made: {error.strerror}; choose another --output.", code="cannot_write"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"{output}: another process trains there; wait for it, or choose another --output.",
                code="in_use",
            ) from None
        try:
            yield
        finally:
            # What was refused leaves nothing; a folder that is in use keeps the file, which others may hold by now.
            if new and [each.name for each in output.iterdir()] == [LOCK]:
                (output / LOCK).unlink()
                with suppress(OSError):
                    output.rmdir()


def keep(recipe: Settings, output: Path) -> None:
    """Write the resolved recipe beside the run."""
    try:
        make_folder(output)
    except OSError as error:
        raise OutputError(
            f"{output} cannot be made: {error.strerror}; choose another --output.", code="cannot_write"
        ) from error
    write_atomic(output / "config.yaml", dump(recipe).encode(), force=True)
