#!/bin/sh
# Long fuzzing: what `make soak` runs. Each line prints its seed; SLICE_SEED=... repeats it.
set -eu
cd "$(dirname "$0")/.."
tests/setup.sh

SLICE_DAMAGES="${SLICE_DAMAGES:-2000}" cargo test --locked --test store -- --nocapture whatever_happens_to_the_files
SLICE_DAMAGES="${SLICE_DAMAGES:-2000}" SLICE_SEED="${SLICE_SEED:-$(date +%s)}" cargo test --locked --test daemon -- --nocapture after_any_damage
