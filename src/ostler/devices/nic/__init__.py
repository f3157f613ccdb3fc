"""Emulated network cards, for guests without virtio drivers."""
