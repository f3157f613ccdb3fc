"""Where images are kept, one file per kind of place. `registry.TRANSPORTS` lists them."""
