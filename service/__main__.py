"""`python -m service` is the command `webhook-dispatcher`."""

from service.cli import main

if __name__ == "__main__":
    main()
