"""GGUF files: a model folder or an adapter as llama.cpp reads it, kept once it is made, and what its weights cost."""
