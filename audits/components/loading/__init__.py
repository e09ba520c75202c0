"""What loading a model gives: two paths to one model, and weights quantised as requested."""
