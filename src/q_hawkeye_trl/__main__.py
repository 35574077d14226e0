"""`python -m q_hawkeye_trl` is `q-hawkeye`."""

from .cli import main

if __name__ == "__main__":
    main()
