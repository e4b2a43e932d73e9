"""Which rewrites of TensorFlow's graph optimizer, grappler, pay off: in a search hardly any of them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

_ALL_BUT_FUSIONS = """layout_optimizer constant_folding shape_optimization arithmetic_optimization
    dependency_optimization loop_optimization function_optimization debug_stripper scoped_allocator_optimization
    pin_to_host_optimization implementation_selector auto_mixed_precision common_subgraph_elimination
    use_plugin_optimizers""".split()


@contextlib.contextmanager
def without_rewrites() -> Iterator[None]:
    """Turns all rewrites off: in a few hundred steps, or on a supernet's graph, they take longer than they save."""
    before = tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": before})


def only_fusions() -> Any:
    """Returns the options of a session whose only rewrite makes a product, its bias and the sum behind one operation.

    On DARTS' supernet it takes two seconds and saves a twentieth of a step.
    """
    options: Any = tf.compat.v1.ConfigProto()
    rewrites = options.graph_options.rewrite_options
    for name in _ALL_BUT_FUSIONS:
        setattr(rewrites, name, rewrites.OFF)
    rewrites.remapping = rewrites.ON
    rewrites.memory_optimization = rewrites.NO_MEM_OPT
    rewrites.meta_optimizer_iterations = rewrites.ONE
    rewrites.disable_model_pruning = rewrites.disable_tfg_optimizer = True
    return options
