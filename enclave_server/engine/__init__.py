"""vLLM: started and kept alive as a child of its own, or found where it runs already, and the connections to it."""
