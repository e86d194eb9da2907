"""`python -m dualpath`: the command line."""

from dualpath.cli.main import main

main()
