"""Blocks of patches on a grid, chosen at random: targets to predict, and the context that is left."""
