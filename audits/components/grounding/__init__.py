"""Grounding: boxes read from generated answers, their metrics, and the phrases of a data set."""
