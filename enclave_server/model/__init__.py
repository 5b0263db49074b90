"""The model's files: what the digest covers, who signed them, and how they come to the engine unchanged."""
