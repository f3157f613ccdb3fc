"""The machine that guests run on: what it has, and what it can be asked for."""
