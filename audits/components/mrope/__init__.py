"""Multimodal rotary embedding."""
