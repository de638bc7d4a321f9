"""Where the program `lbctl` begins: Ctrl-C is quiet also while it is still being imported (0.3 s)."""

from __future__ import annotations

import os
import signal
from typing import NoReturn


def main() -> NoReturn:
    """Entry point. It imports nothing before it can be interrupted."""
    # Who started us may have had it ignored (nohup), and then it stays so.
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours:
        # At once, and not by an exception, which modules that are half imported may catch or change:
        # there is nothing yet to put in order.
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from lb.cli.main import main as run

    try:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except KeyboardInterrupt:
        os._exit(130)


if __name__ == "__main__":
    main()
