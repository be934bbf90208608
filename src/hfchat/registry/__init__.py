"""The versions of a model: plain folders, of which one answers."""
