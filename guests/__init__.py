"""Test guests: their sources, and what makes them from Debian's packages."""
