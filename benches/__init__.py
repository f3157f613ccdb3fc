"""Numbers this project promises to keep: boot and guest speed beside QEMU's TCG, in one run."""
