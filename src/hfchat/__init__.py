"""hfchat: recipes that take you from raw text to a chat model that you serve, watch and improve."""

__version__ = "0.1.0"
