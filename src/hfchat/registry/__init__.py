"""The versions of a model: plain folders, and a link to the one that answers."""
