"""Training images per second on one GPU: networks of `zoo.build` under Keras' JAX backend, against PyTorch's.

`python -m benchmarks.gpu_training [darts] [mnasnet_b1] [nasnet_a] [--precision bfloat16] [--sides jax torch]`;
`--smoke`: two small images, on any device. Needs JAX, PyTorch and timm, which the project does not install, but not
TensorFlow.

A step is forward, backward and SGD with momentum on images that are already on the GPU, without auxiliary head and drop
path on either side. JAX: Keras' `stateless_call` and `stateless_apply` in one `jax.jit`. PyTorch: eager, with cuDNN's
autotuner, in both memory layouts, of which the faster is printed. bfloat16 is Keras' `mixed_bfloat16` and PyTorch's
autocast; float32 lets both use TF32. The sides run one after the other, each in its own process.
"""

import argparse
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.machine import describe_machine, make_parser, one_of

# name of zoo.build, preset, side of the images in pixels, batch, classes
MODELS = {
    "darts": ("darts", "cifar10", 32, 96, 10),
    "mnasnet_b1": ("mnasnet_b1", "imagenet", 224, 256, 1000),
    "nasnet_a": ("nasnet_a", "mobile", 224, 128, 1000),
}
SMOKE_SIDE, SMOKE_BATCH, ROUNDS = 32, 2, 5


def time_steps(step: Callable[[], None], wait: Callable[[], None], batch: int, seconds: float) -> dict[str, Any]:
    """Returns the first step's seconds and the images per second: the median over rounds of equally many steps."""
    begin = time.perf_counter()
    step()
    wait()
    first = time.perf_counter() - begin
    for _ in range(3):
        step()
    wait()
    begin = time.perf_counter()
    step()
    wait()
    steps = max(1, int(seconds / ROUNDS / (time.perf_counter() - begin)))
    rates = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        rates.append(steps * batch / (time.perf_counter() - begin))
    return {"first_step_s": round(first, 1), "images_per_s": round(statistics.median(rates), 1)}


def train_jax(name: str, precision: str, side: int, batch: int, classes: int, seconds: float) -> dict[str, Any]:
    """Trains `zoo.build`'s network under Keras' JAX backend."""
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    import jax.numpy as jnp
    import keras
    import numpy as np

    import zoo

    if precision == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    genotype, preset, *_ = MODELS[name]
    begin = time.perf_counter()
    model = zoo.build(genotype, preset, input_shape=(side, side, 3), classes=classes)
    built = time.perf_counter() - begin
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    optimizer.build(model.trainable_variables)
    loss = keras.losses.SparseCategoricalCrossentropy()

    def forward(trainable: Any, other: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        predictions, other = model.stateless_call(trainable, other, images, training=True)
        return loss(labels, predictions), other

    def update(state: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        trainable, other, slots = state
        (value, other), gradients = jax.value_and_grad(forward, has_aux=True)(trainable, other, images, labels)
        trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
        return (trainable, other, slots), value

    compiled = jax.jit(update, donate_argnums=0)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(batch, side, side, 3)), "float32")
    labels = jnp.asarray(rng.integers(classes, size=batch), "int32")
    variables = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
    state = [jax.tree.map(lambda variable: jnp.copy(variable.value), list(group)) for group in variables]
    value = None

    def step() -> None:
        nonlocal state, value
        state, value = compiled(state, images, labels)

    result = time_steps(step, lambda: jax.block_until_ready(value), batch, seconds)
    return {**result, "build_s": round(built, 1), "loss": float(value), "parameters": model.count_params()}


def train_torch(name: str, precision: str, side: int, batch: int, classes: int, seconds: float) -> dict[str, Any]:
    """Trains PyTorch's network of the same architecture, eager, in the faster of the two memory layouts."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    make = {"darts": _make_darts, "mnasnet_b1": _make_mnasnet, "nasnet_a": _make_nasnet}[name]
    best: dict[str, Any] = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = make(classes).to(device, memory_format=layout).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        images = torch.randn(batch, 3, side, side, device=device).to(memory_format=layout)
        labels = torch.randint(classes, (batch,), device=device)

        def step(model: Any = model, optimizer: Any = optimizer, images: Any = images, labels: Any = labels) -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
                loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()

        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        result = time_steps(step, wait, batch, seconds)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        result |= {"layout": str(layout).removeprefix("torch."), "parameters": parameters}
        if result["images_per_s"] > best.get("images_per_s", 0):
            best = result
    return best


def _make_mnasnet(classes: int) -> Any:
    import timm

    return timm.create_model("mnasnet_100", num_classes=classes)


def _make_nasnet(classes: int) -> Any:
    """NASNet-A mobile (4 @ 1056) from timm's layers; timm's own class always has six normal cells per stage."""
    from timm.models.nasnet import NASNetALarge

    class Mobile(NASNetALarge):
        def forward_features(self, images: Any) -> Any:
            stem = self.conv0(images)
            older = self.cell_stem_0(stem)
            newer = self.cell_stem_1(stem, older)
            for stage in range(3):
                if stage:
                    newer = getattr(self, f"reduction_cell_{stage - 1}")(newer, older)
                for index in range(6 * stage, 6 * stage + 4):
                    older, newer = newer, getattr(self, f"cell_{index}")(newer, older)
            return self.act(newer)

    model = Mobile(classes, stem_size=32, num_features=1056)
    for index in (4, 5, 10, 11, 16, 17):
        delattr(model, f"cell_{index}")
    return model


def _make_darts(classes: int) -> Any:
    """DARTS' CIFAR-10 network (20 cells, 36 channels), from the layers of quark0/darts."""
    from torch import nn

    import zoo

    def relu_conv_bn(inputs: int, outputs: int) -> Any:
        return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def separable(channels: int, stride: int, kernel: int, dilation: int) -> list[Any]:
        padding = dilation * (kernel // 2)
        return [
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        ]

    class FactorizedReduce(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.first = nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False)
            self.second = nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False)
            self.norm = nn.BatchNorm2d(outputs)

        def forward(self, images: Any) -> Any:
            import torch

            images = nn.functional.relu(images)
            return self.norm(torch.cat([self.first(images), self.second(images[:, :, 1:, 1:])], 1))

    def operation(op: str, channels: int, stride: int) -> Any:
        if op == "skip_connect":
            return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)
        if op == "max_pool_3x3":
            return nn.MaxPool2d(3, stride, 1)
        kernel = int(op[-1])
        if op.startswith("dil"):
            return nn.Sequential(*separable(channels, stride, kernel, 2))
        return nn.Sequential(*separable(channels, stride, kernel, 1), *separable(channels, 1, kernel, 1))

    class Cell(nn.Module):
        def __init__(self, cell: Any, older: int, newer: int, channels: int, halve: bool, halved: bool) -> None:
            super().__init__()
            self.older = FactorizedReduce(older, channels) if halved else relu_conv_bn(older, channels)
            self.newer = relu_conv_bn(newer, channels)
            self.edges = [edge for node in cell.nodes for edge in node.edges]
            self.concat = cell.concat
            self.operations = nn.ModuleList(
                operation(edge.op, channels, 2 if halve and edge.state < 2 else 1) for edge in self.edges
            )

        def forward(self, older: Any, newer: Any) -> Any:
            import torch

            states = [self.older(older), self.newer(newer)]
            for index in range(0, len(self.edges), 2):
                edges, operations = self.edges[index : index + 2], self.operations[index : index + 2]
                first, second = (
                    operation(states[edge.state]) for edge, operation in zip(edges, operations, strict=True)
                )
                states.append(first + second)
            return torch.cat([states[index] for index in self.concat], 1)

    class Network(nn.Module):
        def __init__(self, cells: int = 20, channels: int = 36) -> None:
            super().__init__()
            body = zoo.load("darts").body
            self.stem = nn.Sequential(
                nn.Conv2d(3, 3 * channels, 3, padding=1, bias=False), nn.BatchNorm2d(3 * channels)
            )
            older = newer = 3 * channels
            halved, self.cells = False, nn.ModuleList()
            for index in range(cells):
                halve = index in (cells // 3, 2 * cells // 3)
                channels *= 2 if halve else 1
                cell = body.reduce if halve else body.normal
                self.cells.append(Cell(cell, older, newer, channels, halve, halved))
                halved, older, newer = halve, newer, len(cell.concat) * channels
            self.head = nn.Linear(newer, classes)

        def forward(self, images: Any) -> Any:
            older = newer = self.stem(images)
            for cell in self.cells:
                older, newer = newer, cell(older, newer)
            return self.head(newer.mean((2, 3)))

    return Network()


def main() -> None:
    """Prints a line for each side, and their ratio."""
    parser = make_parser(__doc__, smoke="two images of 32 pixels, one step per round")
    parser.add_argument("models", nargs="*", type=one_of(MODELS), help=f"of {', '.join(MODELS)}; by default all")
    parser.add_argument("--precision", nargs="+", choices=("bfloat16", "float32"), default=("bfloat16", "float32"))
    parser.add_argument("--sides", nargs="+", choices=("jax", "torch"), default=("torch", "jax"))
    parser.add_argument("--seconds", type=float, default=5, help="of timed steps")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # measure in this process
    args = parser.parse_args()
    if not args.one:
        missing = [name for name in ("jax", "torch", "timm") if importlib.util.find_spec(name) is None]
        print(describe_machine(*{"jax", "torch", "timm", "keras"}.difference(missing)), flush=True)
        if missing:
            print(f"left out: needs {', '.join(missing)} (pip install jax torch timm)")
            return
    if args.one:
        (model,), (precision,), (side,) = args.models, args.precision, args.sides
        _, _, pixels, batch, classes = MODELS[model]
        pixels, batch, seconds = (SMOKE_SIDE, SMOKE_BATCH, 0) if args.smoke else (pixels, batch, args.seconds)
        train = {"jax": train_jax, "torch": train_torch}[side]
        print(json.dumps(train(model, precision, pixels, batch, classes, seconds)))
        return
    for model, precision in itertools.product(args.models or MODELS, args.precision):
        rates = {}
        for side in args.sides:
            options = ["--sides", side, "--precision", precision, "--seconds", str(args.seconds), "--one"]
            command = [sys.executable, "-m", "benchmarks.gpu_training", model, *options]
            done = subprocess.run(command + ["--smoke"] * args.smoke, check=False, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                print(f"{model}, {precision}, {side}: failed", flush=True)
                continue
            result = json.loads(done.stdout.splitlines()[-1])
            rates[side] = result["images_per_s"]
            print(f"{model}, {precision}, {side}: {json.dumps(result)}", flush=True)
        if len(rates) == 2:
            print(f"{model}, {precision}: {rates['jax'] / rates['torch']:.2f} times PyTorch's", flush=True)


if __name__ == "__main__":
    main()
