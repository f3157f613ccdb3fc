"""The formats a disk image can have, one per file."""
