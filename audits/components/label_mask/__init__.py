"""What is trained on: labels of a conversation, their truncation, and their padding to a batch."""
