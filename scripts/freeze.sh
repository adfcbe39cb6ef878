#!/usr/bin/env bash
# Runs all tests and, if they pass, writes the versions that they passed with to constraints.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/pytest -q -m ""
{
    echo "# The versions that all tests passed with, written by scripts/freeze.sh."
    # a build for one kind of machine, such as 2.13.0+cpu, is left open
    .venv/bin/pip freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$//'
} > constraints.new
mv constraints.new constraints.txt
