"""Logs of a search for TensorBoard and its HParams table: one folder per trial, with choices, metrics and status."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import tensorflow as tf

from recipes.engine.workers import Task

Evaluate = Callable[[Task], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class LoggedEvaluate:
    """`evaluate` with a log of each trial in `folder`/trial_00000; a trial that is run again starts a new log.

    Attributes:
        evaluate: task -> dict of numbers, as `recipes.engine.tuner.Tuner` takes it.
        folder: for `tensorboard --logdir`.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    evaluate: Evaluate
    folder: Path

    def __post_init__(self):
        _import_hparams()  # raises before the first trial, not in it

    def __call__(self, task: Task) -> Mapping[str, float]:
        """Runs and logs a trial."""
        hparams = _import_hparams()
        own = self.folder / f"trial_{task.number:05d}"
        shutil.rmtree(own, ignore_errors=True)
        writer = tf.summary.create_file_writer(str(own))
        status = hparams.api_pb2.STATUS_FAILURE
        with writer.as_default(step=0):
            choices = {name: _to_hparam(value) for name, value in task.values.items()}
            hparams.summary_v2.hparams(choices, trial_id=f"trial {task.number}")
            try:
                results = self.evaluate(task)
                for name, value in sorted(results.items()):
                    tf.summary.scalar(name, value)
                status = hparams.api_pb2.STATUS_SUCCESS
            finally:
                end = hparams.summary.session_end_pb(status)
                tf.summary.experimental.write_raw_pb(end.SerializeToString())
                writer.close()
        return results


def _import_hparams() -> ModuleType:
    try:
        from tensorboard.plugins import hparams
        from tensorboard.plugins.hparams import api_pb2, summary, summary_v2  # noqa: F401 - makes them attributes
    except ImportError as error:
        raise ImportError(
            "--tensorboard needs TensorBoard, which is not installed: pip install tensorboard, or leave the flag out"
        ) from error
    return hparams


def _to_hparam(value: Any) -> Any:
    """Converts a value for the HParams table; numbers stay numbers, so that TensorBoard can sort and filter by them."""
    return value if isinstance(value, (bool, int, float)) else str(value)
