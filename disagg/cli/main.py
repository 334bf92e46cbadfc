"""The program `disagg`: heeds signals before anything else is imported, then runs the command.

Way:   shell -> [main] -> app -> a command
Out:   the exit status that app.py lists; a command that a signal ended has 128 + its number
"""

from __future__ import annotations

import atexit

from disagg import stopping


def main() -> None:
    with stopping.heed():
        stopping.need_standard_files()
        try:
            from disagg.cli.app import run

            run()
        except stopping.Stopped as stopped:
            stopping.leave(128 + stopped.number)


def program() -> None:
    """`main` as a whole process. Ray imports for a second at the end; a signal in that second has its status, too."""
    with stopping.heed():
        try:
            main()
        finally:
            atexit._run_exitfuncs()


if __name__ == "__main__":
    program()
