"""The checks: a module for each group. A check returns what it saw, or raises that it failed or does not apply."""
