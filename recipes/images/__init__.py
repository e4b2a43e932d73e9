"""From files and data sets to batches of pixels: reading, resizing, augmentation; start at recipes.images.sources."""
