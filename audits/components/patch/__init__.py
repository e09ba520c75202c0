"""Patches of whole models: that they land, and that the model trains as before."""
