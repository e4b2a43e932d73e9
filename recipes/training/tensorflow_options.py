"""TensorFlow's own options, as this project's networks need them, each with the measurement that speaks for it.

Grappler, TensorFlow's graph optimizer, rewrites a graph before it first runs. On the graphs of searches, thousands of
operations that run some hundred times, that takes longer than it saves: 25 s of a 47 s first run of a DARTS supernet
(batch 32, 4 cores), for steps that are 8 % faster. A training of thousands of steps gets its rewrites.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

_FEW_STEPS = 3000  # for fewer of them rewriting a network's graph takes longer than it saves
_THREADS = "TF_NUM_INTRAOP_THREADS"
_ALL_BUT_FUSIONS = """layout_optimizer constant_folding shape_optimization arithmetic_optimization
    dependency_optimization loop_optimization function_optimization debug_stripper scoped_allocator_optimization
    pin_to_host_optimization implementation_selector auto_mixed_precision common_subgraph_elimination
    use_plugin_optimizers""".split()


@contextlib.contextmanager
def without_rewrites(steps: int = 0) -> Iterator[None]:
    """Has grappler leave alone the graphs that first run in the block, unless they run so many `steps` that it pays."""
    import tensorflow as tf

    before = tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": steps < _FEW_STEPS})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": before})


def only_fusions() -> Any:
    """Returns the options of a session whose one rewrite fuses a matrix product with its bias and the sum after it.

    On DARTS' supernet that takes two seconds and saves a twentieth of a step.
    """
    import tensorflow as tf

    options: Any = tf.compat.v1.ConfigProto()
    graph_rewrites = options.graph_options.rewrite_options
    for name in _ALL_BUT_FUSIONS:
        setattr(graph_rewrites, name, graph_rewrites.OFF)
    graph_rewrites.remapping = graph_rewrites.ON
    graph_rewrites.memory_optimization = graph_rewrites.NO_MEM_OPT
    graph_rewrites.meta_optimizer_iterations = graph_rewrites.ONE
    graph_rewrites.disable_model_pruning = graph_rewrites.disable_tfg_optimizer = True
    return options


def run_branches_side_by_side() -> None:
    """Gives an operation a quarter of the cores, so that operations of several branches run at once.

    Ten and more operations of a cell wait for nothing but the cell's inputs. On two cores a step of DARTS' supernet
    takes 0.8 of the time, and a trial of AmoebaNet's search 0.86. For this whole process and those that it starts; call
    it before TensorFlow's first operation. What the user has set in the environment stays.
    """
    os.environ.setdefault(_THREADS, str(max(1, (os.cpu_count() or 1) // 4)))
