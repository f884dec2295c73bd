#!/bin/sh
# Long fuzzing: what `make soak` runs. Root. SLICE_DAMAGES sets the number of damages (2000), SLICE_CLAIM_ROUNDS how often groups of
# one daemon and of two choose their addresses at once (100), SLICE_SEED the seed; all are printed.
set -eu
cd "$(dirname "$0")/.."
SLICE_DAMAGES="${SLICE_DAMAGES:-2000}"
SLICE_SEED="${SLICE_SEED:-$(date +%s)}"
SLICE_CLAIM_ROUNDS="${SLICE_CLAIM_ROUNDS:-100}"
export SLICE_DAMAGES SLICE_SEED SLICE_CLAIM_ROUNDS
echo "soak: SLICE_DAMAGES=$SLICE_DAMAGES SLICE_CLAIM_ROUNDS=$SLICE_CLAIM_ROUNDS SLICE_SEED=$SLICE_SEED"
tests/setup.sh
cargo test --locked --test kernel whatever_happens_to_the_files -- --nocapture
cargo test --locked --test e2e after_any_damage -- --nocapture
cargo test --locked --test kernel pipeline::claims:: -- --nocapture
cargo test --locked --test e2e claims:: -- --nocapture
