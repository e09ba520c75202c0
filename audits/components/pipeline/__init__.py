"""What a training script hands to its model: samples, batches, labels, positions, and the loss that comes of them."""
