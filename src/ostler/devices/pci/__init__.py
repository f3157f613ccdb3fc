"""PCI: configuration space, the host bridge, MSI-X and the base of every PCI device."""
