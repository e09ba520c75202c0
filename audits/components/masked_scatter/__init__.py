"""Features of media put into text embeddings at their placeholders."""
