"""`python -m skillserve` is the `skillserve` command."""

from skillserve.cli import run

if __name__ == "__main__":
    run()
