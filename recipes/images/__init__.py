"""From files and data sets to batches of pixels: reading, resizing, augmentation; recipes.data is the door."""
