//! The store's laws on a real disk: what was committed is there again, what was not is not, damage is set aside.
//! Out of scope: the pipeline's preconditions and leases (`tests/pipeline.rs`); a full disk (`tests/store_full.rs`).

#[path = "store/damage.rs"]
mod damage;
#[path = "store/io_errors.rs"]
mod io_errors;
#[path = "store/power.rs"]
mod power;
#[path = "store/reopen.rs"]
mod reopen;
mod support;
#[path = "store/whole.rs"]
mod whole;
