"""`python -m distuda`."""

from distuda.cli import main

main()
