"""`python -m ostler` is `ostler`."""

from ostler.cli import main

main()
