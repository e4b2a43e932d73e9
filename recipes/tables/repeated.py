"""Trains each network several times and tests it, for a table, which thus holds what a search must not see."""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import zoo
from recipes.engine import tuner
from recipes.engine.children import OBJECTIVE, NetworkScorer, plan_memory
from recipes.engine.config import ChildConfig
from recipes.images import sources
from zoo import atomic


@dataclasses.dataclass(frozen=True)
class RepeatedScorer(NetworkScorer):
    """Trains each network `repeats` times; the results are `val_accuracy_0`, `test_accuracy_0`, .. and the mean.

    All networks share their seeds, so that their ranking does not depend on a lucky order of the images.
    """

    repeats: int = dataclasses.field(kw_only=True)
    validation_fraction: float = dataclasses.field(kw_only=True)
    # key -> results of the first trainings, taken from another table
    known: Mapping[str, Sequence[Mapping[str, float]]] = dataclasses.field(kw_only=True, default_factory=dict)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state, images=load_all_images(state["config"], state["validation_fraction"]))

    @property
    def portable(self) -> bool:
        """True: a trial gives the same in another process."""
        return True

    def score(self, task: tuner.Task) -> dict[str, float]:
        """Returns the mean validation accuracy, the results of each training, parameters and MACs."""
        file = task.folder / "repeats.json"  # trainings that an earlier process has finished
        known = self.known.get(self.space.key(task.values), ())
        done = json.loads(file.read_text(encoding="utf-8")) if file.exists() else list(known)
        counts = self._count(task.values)
        for repeat in range(len(done), self.repeats):
            done.append(self._train(task, repeat))
            atomic.write_atomically(file, json.dumps(done))
        found = {f"{name}_{number}": each[name] for number, each in enumerate(done) for name in each}
        return {OBJECTIVE: float(np.mean([each[OBJECTIVE] for each in done])), **found, **counts}

    def _train(self, task: tuner.Task, repeat: int) -> dict[str, float]:
        begun = time.monotonic()
        one = dataclasses.replace(
            task,
            seed=self.config.seed + repeat,
            folder=task.folder / f"repeat{repeat}",
            report=lambda share, text: task.report((repeat + share) / self.repeats, text),
        )
        found = self.train(lambda: self.build(task.values), one, test_part=self.images.test)
        seconds = {"seconds": round(time.monotonic() - begun, 3)}
        return {name: found[name] for name in (OBJECTIVE, "test_accuracy", "loss")} | seconds

    def _count(self, values: Mapping[str, Any]) -> dict[str, float]:
        try:
            cost = zoo.cost.of(self.build(values))
            return {"params": cost.params, "macs": cost.macs}
        finally:
            tuner.forget_models()

    def predict_memory(self, values: Mapping[str, Any]) -> dict[str, int]:
        """Returns the bytes of arena and file that the int8 network needs under TFLM, according to its memory plan."""
        try:
            plan = plan_memory(self.build(values))
            return {"sram": plan.arena, "flash": plan.flash}
        finally:
            tuner.forget_models()


def load_all_images(config: ChildConfig, validation_fraction: float) -> sources.Data:
    """Returns the images for the trainings, including the test images.

    Args:
        config: which images, and how many.
        validation_fraction: share of the training images to validate on, if the source has no validation images.
    """
    found = sources.load(
        config.data, size=config.image_size, validation_fraction=validation_fraction, seed=config.seed,
        **config.folder_options,
    )  # fmt: skip
    train, validation = found.train.first(config.training_images), found.validation.first(config.validation_images)
    return dataclasses.replace(found, train=train, validation=validation)
