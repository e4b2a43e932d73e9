"""From files and data sets to batches of pixels: reading, resizing, augmentation; start at recipes.images.sources."""

EMBEDDED = "fashion_mnist_small"  # the name of the images that come with the package
