"""Networks that hold all networks of a space, their training, and the way from a path to a network of its own."""
