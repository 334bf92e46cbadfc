"""pip, as a program that ends with the process that started it: `pip_program.py ARGUMENTS…`.

Way:   fetch -> [pip]
Alone: nothing of disagg is imported here, nor from the folder where it is started
"""

from __future__ import annotations

import ctypes
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    sys.argv[0] = "pip"
    runpy.run_module("pip", run_name="__main__", alter_sys=True)
