"""Which models answer: what is loaded at the start, and what a registry promotes later."""
