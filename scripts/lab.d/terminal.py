"""The user's terminal while it is that of a shell on a host."""

import os
import selectors
import sys
import termios
import tty


class Terminal:
    """Restores the terminal at the end. Standard input may also be a file or a pipe."""

    def __init__(self, number):
        self.number = number  # of the host
        self.descriptor = sys.stdin.fileno()
        self.far = None
        self.saved = None

    def size(self):
        """Rows and columns."""
        try:
            columns, rows = os.get_terminal_size(self.descriptor)
        except OSError:
            rows, columns = 24, 80
        return rows, columns

    def __enter__(self):
        if os.isatty(self.descriptor):
            self.saved = termios.tcgetattr(self.descriptor)
            tty.setraw(self.descriptor)
        return self

    def __exit__(self, *_):
        if self.saved:
            termios.tcsetattr(self.descriptor, termios.TCSADRAIN, self.saved)

    def show(self, selector, far):
        """From now on, what comes from `far`, the host's terminal, is shown to the user."""
        self.far = far

        def ready():
            try:
                data = os.read(far, 65536)
            except OSError:  # the host is gone
                data = b""
            if data:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            else:
                selector.unregister(far)

        selector.register(far, selectors.EVENT_READ, ready)

    def listen(self, selector):
        """From now on, what the user types goes to the host."""

        def ready():
            data = os.read(self.descriptor, 4096)
            if not data:
                selector.unregister(self.descriptor)
                data = b"\x04"  # the shell sees the end of its input
            os.write(self.far, data)

        selector.register(self.descriptor, selectors.EVENT_READ, ready)

    def detach(self, selector):
        """The host is gone: nobody reads what is typed."""
        if self.descriptor in selector.get_map():
            selector.unregister(self.descriptor)
