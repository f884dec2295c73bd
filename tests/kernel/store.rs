//! The store's laws on a real disk: what was committed is there again, what was not is not, damage is set aside.
//! Out of scope: the pipeline's preconditions and leases (`tests/kernel/pipeline.rs`); a full disk (`tests/kernel/store/full.rs`).

mod damage;
mod full;
mod io_errors;
mod power;
mod reopen;
mod whole;
