"""What TensorBoard shows of a search, with its HParams table: a folder a trial, with choices, metrics and outcome.

Written by tf.summary alone: TensorFlow does not bring TensorBoard, and whoever reads the logs has it. The messages of
its HParams plugin (tensorboard/plugins/hparams/{api,plugin_data}.proto) are declared here for the same reason.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2
from tensorflow.core.framework import summary_pb2

from recipes.engine.tuner import Task

Evaluate = Callable[[Task], Mapping[str, float]]

_PLUGIN, _SUCCESS, _FAILURE = "hparams", 1, 2
_STARTED, _ENDED = "_hparams_/session_start_info", "_hparams_/session_end_info"
_PACKAGE = "searched_zoo.hparams"  # not TensorBoard's: both may be loaded in one process
# message -> field -> (number, type); field types are those of descriptor.proto
_DOUBLE, _INT32, _STRING, _MESSAGE = 1, 5, 9, 11
_FIELDS = {
    "StartInfo": {"hparams": (1, "Choice"), "group_name": (4, _STRING), "start_time_secs": (5, _DOUBLE)},
    "Choice": {"key": (1, _STRING), "value": (2, ".google.protobuf.Value")},  # an entry of a map<string, Value>
    "EndInfo": {"status": (1, _INT32), "end_time_secs": (2, _DOUBLE)},
    "PluginData": {"version": (1, _INT32), "session_start_info": (3, "StartInfo"), "session_end_info": (4, "EndInfo")},
}


def _messages() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3")
    file.dependency.append("google/protobuf/struct.proto")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            added = message.field.add(name=field, number=number, label=3 if kind == "Choice" else 1)
            added.type = kind if isinstance(kind, int) else _MESSAGE  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(kind, str):
                added.type_name = kind if kind.startswith(".") else f".{_PACKAGE}.{kind}"
    pool = descriptor_pool.Default()
    pool.Add(file)
    found = {name: pool.FindMessageTypeByName(f"{_PACKAGE}.{name}") for name in _FIELDS}
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in found.items()}


MESSAGES = _messages()


def logged(evaluate: Evaluate, folder: Path) -> Evaluate:
    """Returns `evaluate` with a log of each trial in `folder`/trial_00000; a trial that is run again begins a new one.

    Args:
        evaluate: task -> name -> number, as `recipes.engine.tuner.Tuner` takes it.
        folder: for `tensorboard --logdir`.
    """
    return _Logged(evaluate, folder)


@dataclasses.dataclass(frozen=True)
class _Logged:
    evaluate: Evaluate
    folder: Path

    def __call__(self, task: Task) -> Mapping[str, float]:
        own = self.folder / f"trial_{task.number:05d}"
        shutil.rmtree(own, ignore_errors=True)
        writer = tf.summary.create_file_writer(str(own))
        status = _FAILURE
        with writer.as_default():
            start = _start(task)
            _write_plugin_data(_STARTED, MESSAGES["PluginData"](session_start_info=start))
            try:
                results = self.evaluate(task)
                for name, value in sorted(results.items()):
                    _write_scalar(name, value)
                status = _SUCCESS
            finally:
                end = MESSAGES["EndInfo"](status=status, end_time_secs=time.time())
                _write_plugin_data(_ENDED, MESSAGES["PluginData"](session_end_info=end))
                writer.close()
        return results


def _start(task: Task) -> Any:
    entries = [_choice(name, value) for name, value in task.values.items()]
    return MESSAGES["StartInfo"](hparams=entries, group_name=f"trial {task.number + 1}", start_time_secs=time.time())


def _choice(name: str, value: Any) -> Any:
    """Returns one entry of the table; numbers stay numbers, so that TensorBoard can sort and filter by them."""
    if isinstance(value, bool):
        known = struct_pb2.Value(bool_value=value)
    elif isinstance(value, (int, float)):
        known = struct_pb2.Value(number_value=value)
    else:
        known = struct_pb2.Value(string_value=str(value))
    return MESSAGES["Choice"](key=name, value=known)


def _write_plugin_data(tag: str, data: Any) -> None:
    metadata = summary_pb2.SummaryMetadata()
    metadata.plugin_data.plugin_name = _PLUGIN
    metadata.plugin_data.content = data.SerializeToString()
    tf.summary.write(tag, tf.zeros([1]), step=0, metadata=metadata)


def _write_scalar(tag: str, value: float) -> None:
    metadata = summary_pb2.SummaryMetadata(data_class=summary_pb2.DATA_CLASS_SCALAR)
    metadata.plugin_data.plugin_name = "scalars"
    tf.summary.write(tag, tf.constant(value, tf.float32), step=0, metadata=metadata)
