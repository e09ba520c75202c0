"""What a configuration says, against what the data holds and what the model does."""
