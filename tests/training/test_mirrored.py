"""A trial on two devices computes what it computes on one; virtual CPUs stand for GPUs."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import json, sys
    from pathlib import Path
    import keras, numpy as np, tensorflow as tf

    processor = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
    from recipes.training import child_training as trial
    from recipes.images.parts import Arrays
    from recipes.training.learner import list_gpus

    rng = np.random.default_rng(0)
    labels = np.arange(49) % 2
    pixels = rng.integers(0, 60, (49, 8, 8, 1))
    pixels[labels == 1, 4:] += 150
    part = Arrays(pixels.astype(np.uint8), labels)

    def network(normalized):
        x = inputs = keras.Input((8, 8, 1))
        x = keras.layers.Conv2D(4, 3, name="conv")(x)
        x = keras.layers.BatchNormalization(name="bn")(x) if normalized else x
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
        return keras.Model(inputs, keras.layers.Dense(2, name="top")(x))

    class Killed(BaseException):
        pass

    def kill(share, text):
        if share > 0.5:
            raise Killed

    def train(devices, normalized=False, **options):
        settings = trial.make_child_settings(49, 2, 16, 0.1, 1e-4)  # the last batch has one image
        return trial.train(
            lambda: network(normalized), part, part, settings, seed=1, devices=devices, **options
        )

    two, folder = ["CPU:0", "CPU:1"], Path(sys.argv[1])
    try:
        train(two, True, folder=folder, report=kill)
    except Killed:
        print("killed")
    print(json.dumps({
        "visible": list_gpus(), "one": train([]), "two": train(two), "whole": train(two, True),
        "resumed": train(two, True, folder=folder),
    }))
"""


@pytest.mark.slow
def test_two_devices_compute_what_one_computes_and_resume_as_one_does(tmp_path, project):
    variables = os.environ | {"PYTHONPATH": str(project), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    killed, results = done.stdout.splitlines()[-2:]
    found = json.loads(results)
    assert killed == "killed"
    assert found["visible"] == []  # no GPU
    assert found["two"] == pytest.approx(found["one"], rel=1e-4)  # without normalization it is the same sum
    assert found["resumed"] == pytest.approx(found["whole"], rel=1e-6)
    assert found["whole"]["params"] == found["one"]["params"] + 16
