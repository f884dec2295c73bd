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
# A filter that matches no test would pass.
soak() {
    cargo test --quiet --locked --test "$1" "$2" -- --list | grep -q ': test$' || {
        echo "soak: no test of $1 matches $2" >&2
        exit 1
    }
    cargo test --locked --test "$1" "$2" -- --nocapture
}
soak kernel whatever_happens_to_the_files
soak e2e after_any_damage
soak kernel pipeline::claims::
soak e2e claims::
