"""From a flat keras.Model to a file on a phone or a microcontroller; nothing here knows a family or a genotype.

The modules, in the order of use: `tflite` (convert), `measure` (accuracy, latency, arena: MEASURED), `planner` (arena,
flash and fit on a board, told from the file alone), `tf_keras_twin` and `quantize` (training for int8), `doctor` (where
int8 loses accuracy), `c_array` (the file as C source). Import the module that you need; importing this package loads
none of them.
"""
