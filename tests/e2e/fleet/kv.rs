//! The client against real etcd.
//! Out of scope: answers that etcd does not give (`src/fleet/kv/tests`).

use std::time::Instant;
use test_support::kernel;
use super::lab::Lab;

#[test]
fn smoke() {
    kernel::private(async {
        let t = Instant::now();
        let lab = Lab::start();
        eprintln!("start {:?}", t.elapsed());
        let client = lab.client("control");
        for _ in 0..5 {
        let t = Instant::now();
        let h = client.put("/slice/v1/vms/x", "1", None).await;
        eprintln!("{h:?} {:?}", t.elapsed());
        }
        eprintln!("{}", lab.leader());
    });
}
