"""The host's ends of network cables: one back-end a file, and the registry of MAC addresses."""
