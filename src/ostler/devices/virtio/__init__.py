"""virtio 1.x: the PCI transport and the devices that speak through it."""
