"""Command ``python bound_child.py PARENT COMMAND...``: run a command that ends when its parent process is killed.

Without this, the app goes on after a kill of the gateway, beside the run that a restarted gateway begins.
"""

import ctypes
import os
import signal
import sys

SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() == int(sys.argv[1]):  # otherwise it was killed before the line above
        os.execv(sys.argv[2], sys.argv[2:])
