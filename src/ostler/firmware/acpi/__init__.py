"""ACPI: the tables that describe the board to its guest, built from nothing but a `Board`."""
