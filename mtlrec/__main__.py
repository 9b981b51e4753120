"""`python -m mtlrec` is the `mtlrec` command, for launchers that name a module."""

from mtlrec.cli.main import main

if __name__ == "__main__":
    main()
