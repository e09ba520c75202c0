"""Losses over tokens of which some are masked."""
