"""`python -m metalearn`: the command line."""

from metalearn.cli.main import main

if __name__ == "__main__":
    main()
