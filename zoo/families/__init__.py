"""One module a family: its Style and its `build(genotype, preset, options)`. They never import one another."""
