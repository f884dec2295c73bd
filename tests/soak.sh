#!/bin/sh
# Long fuzzing: what `make soak` runs. Root. SLICE_DAMAGES says how many damages (2000), SLICE_SEED with which seed; both are printed.
set -eu
cd "$(dirname "$0")/.."
SLICE_DAMAGES="${SLICE_DAMAGES:-2000}"
SLICE_SEED="${SLICE_SEED:-$(date +%s)}"
export SLICE_DAMAGES SLICE_SEED
echo "soak: SLICE_DAMAGES=$SLICE_DAMAGES SLICE_SEED=$SLICE_SEED"
tests/setup.sh
cargo test --locked --test store whatever_happens_to_the_files -- --nocapture
cargo test --locked --test daemon after_any_damage -- --nocapture
