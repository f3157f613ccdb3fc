"""A virtual machine's life: starting, talking to, pausing, ending."""
