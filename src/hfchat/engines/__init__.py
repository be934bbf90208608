"""Engines that are servers of their own, run as child processes: llama.cpp's and vLLM's.

Serving and evaluation both use them, so nothing here knows of either.
"""
