"""Samples put one after the other into rows, and kept apart there."""
