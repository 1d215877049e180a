"""Run one evaluation: `python -m tdrs.evaluate`, see `tdrs/evaluate_command.py`.

No module may import this one: importing it would replace the function `tdrs.evaluate` in the package by this module.
"""

import sys

from tdrs.configuration import run
from tdrs.evaluate_command import USAGE, main_evaluate

if __name__ == "__main__":
    sys.exit(run("evaluate", main_evaluate, USAGE))
