#!/bin/sh
# Test and measure on a machine with one GPU, in under ten minutes: the suite's GPU tests, then the GPU benchmark.
#
#     scripts/gpu.sh            # results in gpu/
#     scripts/gpu.sh FOLDER
#
# Writes tests.txt and benchmark/table.csv in the folder. The exit status is 1 where a test or a row failed or had no
# time left. It needs the package with its `dev` extra; with learn2learn, the benchmark compares with it.
set -u
out=${1:-gpu}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
cd "$(dirname "$0")/.." || exit 1
python -c "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 'gpu.sh: torch sees no GPU')" || exit 1
failed=0
# The commands come last, as they take longest; when the time is up, an interrupt lets pytest say what it found so far.
tests="tests/gpu/test_[!c]*.py tests/gpu/test_commands.py"
timeout -s INT -k 20 330 python -m pytest -m gpu -q --maxfail 20 $tests >"$out/tests.txt" 2>&1 || failed=1
tail -n 25 "$out/tests.txt"
timeout 240 python scripts/benchmark.py --device cuda --short --rows graphs multi_task_graphs protonet --out "$out/benchmark" || failed=1
exit $failed
