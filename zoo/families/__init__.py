"""One module for each family: its Style and its `build(genotype, preset, options)`. None imports another."""
