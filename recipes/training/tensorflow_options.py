"""Options of TensorFlow, each with the measurement that justifies it.

Grappler, TensorFlow's graph optimizer, rewrites a graph before its first run. A search's graph has thousands of
operations and runs a few hundred times, so rewriting takes longer than it saves: 25 s of a 47 s first run of a DARTS
supernet (batch 32, 4 cores), for steps that are 8 % faster. Only trainings of thousands of steps are rewritten.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

_FEW_STEPS = 3000  # for fewer steps, rewriting a network's graph takes longer than it saves
_THREADS = "TF_NUM_INTRAOP_THREADS"
_ALL_BUT_FUSIONS = """layout_optimizer constant_folding shape_optimization arithmetic_optimization
    dependency_optimization loop_optimization function_optimization debug_stripper scoped_allocator_optimization
    pin_to_host_optimization implementation_selector auto_mixed_precision common_subgraph_elimination
    use_plugin_optimizers""".split()


@contextlib.contextmanager
def without_rewrites(steps: int = 0) -> Iterator[None]:
    """Turns grappler off for graphs that first run within the block, unless they run enough `steps` to gain by it."""
    import tensorflow as tf

    before = tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": steps < _FEW_STEPS})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": before})


def only_fusions() -> Any:
    """Returns options of a session with a single rewrite: it fuses a matrix product, its bias and the sum after it.

    For DARTS' supernet this takes two seconds and saves a twentieth of each step.
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
    """Limits each operation to a quarter of the cores, so that operations of several branches run at once.

    Ten or more operations of a cell depend only on the cell's inputs. On two cores this cuts a step of DARTS' supernet
    to 0.8 of the time, and a trial of AmoebaNet's search to 0.86. It applies to this process and those it starts; call
    it before TensorFlow's first operation. A value that the user has set in the environment is kept.
    """
    os.environ.setdefault(_THREADS, str(max(1, (os.cpu_count() or 1) // 4)))
